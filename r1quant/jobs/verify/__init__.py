"""verify: how far a quantized model is from its baseline."""
