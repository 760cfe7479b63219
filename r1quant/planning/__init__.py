"""What will be done, known from headers alone. No torch, no weights."""
