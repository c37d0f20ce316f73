"""Token mixers: one file for each kind. `registry` lists them.

A kind's file holds its hyperparameters and how they are read from metadata, what a layer keeps between passes, how its
weights are read and checked, and how it runs. `windows`, `scores` and `causal_convolution` hold what several kinds share.
"""
