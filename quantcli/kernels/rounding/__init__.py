"""Searches for scales and codes, rounding under fixed scales, and lossless repacking."""
