"""verify: its arithmetic, its memory of what was said before, and its refusals."""
