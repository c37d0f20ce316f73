"""Attention over a KV cache: scores, softmax and weighted sums of values, for one query and for many."""
