"""Rounding methods: (weight, Stats, ValueGrid) -> Solved. They know statistics of a linear, never the model."""
