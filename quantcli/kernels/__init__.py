"""Numbers to blocks and back, and what inference computes. Knows no file, model or command."""
