"""Building specialists: watch the parent's router over a corpus, choose experts, cut them out, prove the result."""
