"""A roster made real: what can be served, who is asked, the life of an answer, builds. No dialect is known here."""
