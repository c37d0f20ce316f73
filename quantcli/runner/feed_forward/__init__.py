"""Feed-forward networks: one module for each kind, with its hyperparameters, weights and forward pass.

`registry` lists the kinds.
"""
