"""A roster made real: what can be served, which specialist answers, an answer's life, builds. No dialect is known."""
