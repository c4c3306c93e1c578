"""Recovering a mask: which experts of a parent a published specialist keeps, by its router's rows.

matching is pure; recover reads both models, and proves the parent.
"""
