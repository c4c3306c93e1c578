"""What a GGUF file says: its header, its metadata as bytes, and which tensors belong to single experts."""
