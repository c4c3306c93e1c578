"""`coe launch`: clients of others, told of a running server and started.

A module a client holds its settings as pure functions; `runner` alone writes and starts, `saving` alone touches a
client's own files.
"""
