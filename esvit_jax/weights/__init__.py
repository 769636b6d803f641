"""Weights in and out: published names and ours, key by key."""
