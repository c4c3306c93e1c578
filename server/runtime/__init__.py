"""A roster made real: what can be served, which specialist answers, the life of an answer, builds. No dialect is known."""
