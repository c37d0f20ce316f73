"""Checkpoint to GGUF: the plan, the vocabulary, the metadata, the pipeline."""
