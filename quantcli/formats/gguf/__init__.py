"""GGUF files: metadata, tensors, the shards of a split model, and how a vocabulary is written."""
