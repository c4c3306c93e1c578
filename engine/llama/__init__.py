"""llama.cpp and ggml as this project sees them. Only worker, probe and surgery processes import these modules.

Thin on purpose: every call is one of llama.cpp's own, reached through llama-cpp-python's low-level module, which is
pinned because structs are passed by value. llama.cpp aborts when it meets what it does not expect, and importing it
maps the library with all its GPU backends: the process that serves HTTP must never do so.
"""

import os

# After a failed assertion ggml would start a debugger on this process and wait for it, and the debugger's lines would
# bury the assertion's. Read when it aborts. Source: ggml.c, ggml_print_backtrace.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
