"""Losses over global arrays, free of any method."""
