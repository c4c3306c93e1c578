"""Builds of a roster's specialists: the order that an entry stands for, the child process, and the owner in a server.

The pipeline itself is coe.surgery.build's, in a process of its own: llama.cpp may abort it, and the server must go on.
"""
