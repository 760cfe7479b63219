"""Text and questions: what a model is calibrated on, measured with and asked."""
