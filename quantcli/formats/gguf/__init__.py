"""GGUF files: metadata, tensors, the parts of a split model, and how a vocabulary is written."""
