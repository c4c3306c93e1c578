"""Recovering a mask: which experts of a parent a published specialist keeps, by its router's rows.

matching is pure, weights reads what lies in the files, recover does all of it and proves the parent.
"""
