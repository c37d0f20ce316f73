"""Lazy tensors: rows read on demand, views, transposes, computed rows."""
