"""Bytes on disk to named lazy tensors, and back."""
