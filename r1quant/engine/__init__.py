"""Tensors without files: one layer at a time, its statistics, and the rounding of its linears."""
