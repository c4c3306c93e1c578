"""Everything that touches llama.cpp or VRAM: files, models in memory, swaps, decoding, and the pool of residents.

Packages, lowest first: gguf, llama, swap, generate, worker (these run in worker processes) and pool (runs in the
server's process, and never imports llama.cpp).
"""
