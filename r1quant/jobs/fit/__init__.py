"""fit: which hardware holds a model in which format."""
