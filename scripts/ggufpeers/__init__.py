"""GGUF files of llama.cpp and others beside ours: how each is made, and the page of what came of it."""
