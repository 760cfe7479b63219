"""config.json as data: names and shapes of each model family, rotary embeddings, the KV cache."""
