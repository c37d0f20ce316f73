"""Token mixers: one file for each kind. `registry` lists them.

The module of a kind reads its hyperparameters from metadata, declares its KV cache or recurrent state, loads and checks its
weights, and runs it. `windows`, `scores` and `causal_convolution` are shared by several kinds.
"""
