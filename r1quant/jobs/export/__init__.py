"""export: the same weights in another format."""
