"""Measure the loss of quantization: perplexity and Kullback-Leibler divergence of two files on the same text."""
