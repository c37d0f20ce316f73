"""Matrix products with weights as they are stored."""
