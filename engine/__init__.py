"""Everything that touches llama.cpp or VRAM: files, models in memory, swaps, decoding, and the pool of residents.

Packages, lowest first: llama, gguf, swap, generate, worker (these run in workers and other child processes) and pool
(runs in the server's process, and never imports llama.cpp). `child` starts the child processes that do one job.
"""
