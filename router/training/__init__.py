"""Fitting the supervisor's head, and measuring it. Nothing here is needed to serve."""
