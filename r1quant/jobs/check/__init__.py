"""check: whether two artifacts hold the same weights."""
