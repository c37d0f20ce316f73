"""Attention: scores, softmax and sums over a key-value cache, for one query and for many."""
