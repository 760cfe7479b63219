"""What is said of a model that is given away: card, checksums, provenance, licence. It reads and writes no file."""
