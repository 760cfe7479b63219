"""bench: speed and memory, side by side with the baseline."""
