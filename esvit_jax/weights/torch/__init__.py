"""PyTorch checkpoint files, read without torch and without running code."""
