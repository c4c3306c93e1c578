"""Anthropic's dialect: messages, whole and streamed, and how many tokens they are."""
