"""GGUF files as sources: header, config, tokenizer and weights under Hugging Face's names."""
