"""calib generate: text that a model writes to be calibrated on."""
