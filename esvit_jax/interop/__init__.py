"""Weights in and out: other people's files, read safely, key by key."""
