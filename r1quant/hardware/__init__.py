"""Hardware: what well-known cards can do, and what a model would do on one."""
