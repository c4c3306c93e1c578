"""llama.cpp and ggml as this project sees them. Only worker, probe and surgery processes import these modules.

Thin on purpose: every call is one of llama.cpp's own, reached through llama-cpp-python's low-level module, which is
pinned because structs are passed by value. llama.cpp aborts when it meets what it does not expect, and importing it
maps the library with all its GPU backends: the process that serves HTTP must never do so.
"""
