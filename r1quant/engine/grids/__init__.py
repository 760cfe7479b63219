"""Grids at work: parameters chosen for a weight, and columns rounded to them. One file each; they know no method."""
