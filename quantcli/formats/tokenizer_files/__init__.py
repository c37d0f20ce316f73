"""Files of tokenizers that are no JSON."""
