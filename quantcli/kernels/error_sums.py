"""Sums over weights and their errors, in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantcli.kernels.jit import kernel


@kernel
def error_sums(a: Any, b: Any, block_length: int, sums: Any) -> None:
    """Sum squares and products.

    a, b   float32 (n,), of whole blocks of `block_length`
    sums   float64 (5,): receives the sums of a*a, b*b, a*b and e*e for e = b - a, and the largest sum of e*e of a block
    """
    squares = other_squares = products = errors = largest = np.float64(0)
    for first in range(0, a.size, block_length):
        block = np.float64(0)
        for place in range(first, first + block_length):
            x, y = np.float64(a[place]), np.float64(b[place])
            squares += x * x
            other_squares += y * y
            products += x * y
            block += (y - x) * (y - x)
        errors += block
        largest = max(largest, block)
    sums[0], sums[1], sums[2], sums[3], sums[4] = squares, other_squares, products, errors, largest


@kernel
def weighted_error_sums(a: Any, b: Any, importance: Any, sums: Any) -> None:
    """Sum errors weighted by column.

    a, b         float32 (rows, n)
    importance   float32 (n,)
    sums         float64 (2,): receives the sums of importance * e*e for e = b - a, and of the importance values
    """
    weighted = total = np.float64(0)
    for row in range(a.shape[0]):
        for column in range(a.shape[1]):
            error, weight = np.float64(b[row, column]) - np.float64(a[row, column]), np.float64(importance[column])
            weighted += weight * error * error
            total += weight
    sums[0], sums[1] = weighted, total
