"""Quantize a matrix to several types, and compare bits per weight and round-trip error.

    python examples/quantize_rows.py                 a few common types
    python examples/quantize_rows.py Q4_K IQ4_XS     these types; `quantize types` lists all
"""

from __future__ import annotations

import sys

import numpy as np

from quantcli import dequantize, quantize
from quantcli.core.block_types import block_type

COMMON = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
ROWS, ROW_LENGTH = 256, 4096


def example_matrix() -> np.ndarray:
    """Random weights: normally distributed, with a different scale for each column."""
    random = np.random.default_rng(0)
    scales = random.lognormal(mean=-4, sigma=0.3, size=ROW_LENGTH)
    return (random.standard_normal((ROWS, ROW_LENGTH)) * scales).astype(np.float32)


def main(names: list[str]) -> None:
    """Print one line per type."""
    weights = example_matrix()
    print(f"{weights.shape[0]} x {weights.shape[1]} weights, {weights.nbytes:,} bytes as float32\n")
    print(f"{'type':8} {'bits/weight':>11} {'bytes':>10} {'relative error':>14}")
    for name in names:
        packed = quantize(weights, name)
        error = np.linalg.norm(dequantize(packed, name) - weights) / np.linalg.norm(weights)
        print(f"{name:8} {block_type(name).bits_per_weight:11.4f} {packed.nbytes:10,} {error:14.3%}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(COMMON))
