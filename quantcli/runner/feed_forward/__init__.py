"""Feed-forward networks: one file for each kind, with its hyperparameters, how its weights are read, and how it runs.
`registry` lists the kinds."""
