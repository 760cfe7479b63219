"""Transforms of float weights before rounding that fold away: any runtime loads the result as a plain model."""
