"""Studying masks and corpora: overlap, transfer, coherence, growth; tables and plots."""
