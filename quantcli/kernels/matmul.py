"""Matrix products with weights as they are stored: nothing is inflated, a row goes from its bytes to registers.

A weight matrix is uint8 `(rows, row_bytes)`, activations are float32 `(columns, n)`, one row per token, and the result is
float32 `(columns, rows)`. Generation multiplies one column, and is as fast as the weights come from memory; a prompt
multiplies many, `COLUMNS` at a time with each piece of a row that was unpacked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numba import prange
from numpy.typing import NDArray

from quantcli.kernels.dots import PackedDot, dot
from quantcli.kernels.jit import parallel_kernel
from quantcli.kernels.products import COLUMNS, MAX_GROUPS, Product, packed_product, plain_product
from quantcli.kernels.types import BlockType

TILE_ROWS: Final = 32
"""Rows of weights that stay in the cache while all tokens pass over them."""

Multiply = Callable[[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]], None]


@cache
def multiplier(block_type: BlockType) -> Multiply:
    """The kernel `multiply(weights, x, out)` of a type: out = x @ weights.T, compiled when it is first called.

    weights uint8 (rows, row_bytes), x float32 (columns, n), out float32 (columns, rows); all contiguous, n the row's
    length. The kernel checks nothing and runs on numba's threads.

    Raises:
        ValueError: for a type that nothing multiplies by.
    """
    reader = dot(block_type)
    if isinstance(reader, PackedDot):
        return _driver(packed_product(reader, block_type))
    return _driver(plain_product(reader, block_type))


def matmul(weights: NDArray[np.uint8], block_type: BlockType, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """x @ weights.T for a weight matrix stored as `block_type`: the checked entrance to `multiplier`.

    weights uint8 (rows, row_bytes), x float32 (columns, n); returns float32 (columns, rows).

    Raises:
        ValueError: for arrays of another shape or dtype, or a type that nothing multiplies by.
    """
    if x.ndim != 2 or x.dtype != np.float32:
        raise ValueError(f"expected float32 activations (columns, n), got {x.dtype} {x.shape}")
    row_bytes = block_type.row_bytes(x.shape[1])
    if weights.ndim != 2 or weights.dtype != np.uint8 or weights.shape[1] != row_bytes:
        raise ValueError(f"expected uint8 weights (rows, {row_bytes}), got {weights.dtype} {weights.shape}")
    out = np.empty((x.shape[0], weights.shape[0]), np.float32)
    multiplier(block_type)(np.ascontiguousarray(weights), np.ascontiguousarray(x), out)
    return out


def _driver(product: Product) -> Multiply:
    """The loops around a type's dot products. Threads share tiles of rows: each row's numbers are one thread's."""
    allocate, prepare, one, four = product.allocate, product.prepare, product.one, product.four

    @parallel_kernel
    def multiply(weights: Any, x: Any, out: Any) -> None:
        rows, columns = weights.shape[0], x.shape[0]
        activations = allocate(x)
        if columns == 1:
            prepare(x, 0, activations)
        else:
            for column in prange(columns):
                prepare(x, column, activations)
        whole = columns - columns % COLUMNS
        for tile in prange((rows + TILE_ROWS - 1) // TILE_ROWS):
            scratch = (np.empty(MAX_GROUPS, np.float32), np.empty(MAX_GROUPS, np.float32))
            start, stop = tile * TILE_ROWS, min((tile + 1) * TILE_ROWS, rows)
            for column in range(0, whole, COLUMNS):
                for row in range(start, stop):
                    four(weights, row, activations, column, scratch, out)
            for column in range(whole, columns):
                for row in range(start, stop):
                    out[column, row] = one(weights, row, activations, column, scratch)

    return multiply
