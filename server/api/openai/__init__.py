"""The OpenAI dialect: chat and plain completions."""
