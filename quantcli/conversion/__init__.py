"""Checkpoint to GGUF: the plan of tensor types, the vocabulary, the metadata, the quantization pipeline."""
