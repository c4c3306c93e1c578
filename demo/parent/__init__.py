"""The making of the tiny parent: Gemma 4's graph in torch, its tokenizer and chat template, training, GGUF export.

Needs torch. What ships is the file that came of it; serving and the experiment read that alone.
"""
