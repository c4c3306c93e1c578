"""A build: every step from a corpus to a released specialist, as one job that resumes after any interruption."""
