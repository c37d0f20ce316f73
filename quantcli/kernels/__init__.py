"""Kernels: quantization, dequantization and the operations of inference. They are independent of files, models and
commands."""
