"""publish and pull-check: a folder or repository with card, checksums and provenance."""
