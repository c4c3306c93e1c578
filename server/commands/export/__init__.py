"""`coe export`: a specialist's file, and what other programs that serve GGUF files need beside it.

A module a program writes its text as one pure function; `command` alone cuts, copies and writes.
"""
