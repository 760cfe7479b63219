"""report: pages from records."""
