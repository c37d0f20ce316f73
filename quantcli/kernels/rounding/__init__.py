"""Searches for scales and codes, rounding under fixed scales, scales packed and unpacked, and lossless repacking."""
