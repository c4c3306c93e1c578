"""Ollama's API: two dialects, for chats and for prompts, and what its clients ask of models beside that."""
