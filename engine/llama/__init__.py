"""llama.cpp and ggml as this project sees them. Only worker, probe and surgery processes import these modules.

Thin on purpose: every call is one of llama.cpp's own, reached through llama-cpp-python's low-level module, which is
pinned because structs are passed by value. llama.cpp aborts when it meets what it does not expect, and importing it
maps the library with all its GPU backends: the process that serves HTTP must never do so.
"""

import os

from ..process import NO_BACKTRACE

# Also in processes that nobody of ours started, as `coe profile` in a terminal.
os.environ.update(NO_BACKTRACE)
