"""What quantization costs, measured: two files beside each other on the same text."""
