"""Lazy tensors and their algebra: rows on demand, views, transposes, computed rows."""
