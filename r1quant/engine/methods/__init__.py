"""Rounding methods: (weight, Stats, Grid) -> QLinear. They know statistics of a linear, never the model."""
