"""GGUF to text."""
