"""Formats: a QLinear to named tensors and back, bit for bit, or a refusal with the reason."""
