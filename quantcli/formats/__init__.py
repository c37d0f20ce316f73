"""File formats: bytes on disk to named lazy tensors, and back."""
