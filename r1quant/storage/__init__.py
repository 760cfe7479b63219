"""The disk: atomic writes, run directories, the cache, hashes of what is there."""
