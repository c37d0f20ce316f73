"""What a quantization costs, and where to spend bits."""
