"""Fitting the supervisor's head and thresholds, and measuring them. No serving module imports this package."""
