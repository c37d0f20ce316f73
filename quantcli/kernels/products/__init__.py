"""GEMV and GEMM with quantized weights, unpacked in registers or tiles."""
