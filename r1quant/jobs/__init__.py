"""The verbs that touch the disk."""
