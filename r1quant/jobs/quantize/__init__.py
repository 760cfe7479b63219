"""quantize: a checkpoint in, a servable quantized checkpoint out."""
