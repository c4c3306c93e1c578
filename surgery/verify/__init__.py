"""Verification: a cut file holds what its mask says, and computes what the masked parent computes."""
