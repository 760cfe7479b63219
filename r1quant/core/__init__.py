"""Numbers without I/O: what a quantized weight may be, how it is packed, what floats lose."""
