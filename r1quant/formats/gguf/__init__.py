"""GGUF files: exact blocks, metadata, the streamed writer, and reading such files back as integers."""
