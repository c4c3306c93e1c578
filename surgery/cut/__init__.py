"""Cutting: a specialist's GGUF out of its parent's by copying bytes."""
