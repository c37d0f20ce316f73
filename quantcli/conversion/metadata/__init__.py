"""The metadata of an output but for its vocabulary: what the model is called, and what quantizing changes."""
