"""Matrix products with quantized weights: no dequantized copy is made, codes are unpacked in registers or small tiles.

weights      uint8 (rows, row_bytes)
activations  float32 (columns, n), one row per token
result       float32 (columns, rows)

Generation is a GEMV (one column), bound by memory bandwidth. A prompt is a GEMM, with several columns at a time per
unpacked tile. Activations are rounded as the type's dot product in llama.cpp rounds them, except to float16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType
from quantcli.kernels.blocks import codec
from quantcli.kernels.blocks.reader import PackedReader
from quantcli.kernels.jit import inline
from quantcli.kernels.products.activation_layout import STRETCH, Activations, place_of
from quantcli.kernels.products.few_columns import RowProduct, packed_product, plain_product
from quantcli.kernels.products.float_tiles import float_tiles
from quantcli.kernels.products.many_columns import ROWS, TileProduct, packed_tiles
from quantcli.kernels.products.prefetching import prefetch_bytes
from quantcli.kernels.simd import LANES, address, load, store
from quantcli.kernels.threads import parallel_kernel
from quantcli.kernels.threads.loops import parallel_for

_SHARE: Final = 32
"""Rows per work item of a thread in the GEMV."""

Multiply = Callable[[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]], None]


@cache
def multiplier(block_type: BlockType) -> Multiply:
    """The function `multiply(weights, x, out)` of a type: out = x @ weights.T, compiled when it is first called.

    weights uint8 (rows, row_bytes), x float32 (columns, n), out float32 (columns, rows); all contiguous, n the row's
    length. It checks no arguments and runs on the threads of `kernels.threads`.

    Raises:
        ValueError: for a type without a matrix product.
    """
    if block_type.activation is None:
        raise ValueError(f"no matrix product with {block_type.name} weights")
    reader = codec(block_type).reader
    if isinstance(reader, PackedReader):
        row, many = packed_product(reader, block_type), _columns(packed_tiles(reader, block_type), block_type)
    else:
        row, many = plain_product(reader, block_type), _columns(float_tiles(reader, block_type), block_type)
    few = {columns: _few_columns(row, columns) for columns in row.counts}

    def multiply(weights: NDArray[np.uint8], x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        kernel = next((kernel for columns, kernel in few.items() if len(x) <= columns), many)
        kernel(weights, x, out)

    return multiply


def matmul(weights: NDArray[np.uint8], block_type: BlockType, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """x @ weights.T for a weight matrix stored as `block_type`: `multiplier` with checked arguments.

    weights uint8 (rows, row_bytes), x float32 (columns, n); returns float32 (columns, rows).

    Raises:
        ValueError: for arrays of another shape or dtype, or a type without a matrix product.
    """
    if x.ndim != 2 or x.dtype != np.float32:
        raise ValueError(f"expected float32 activations (columns, n), got {x.dtype} {x.shape}")
    row_bytes = block_type.row_bytes(x.shape[1])
    if weights.ndim != 2 or weights.dtype != np.uint8 or weights.shape[1] != row_bytes:
        raise ValueError(f"expected uint8 weights (rows, {row_bytes}), got {weights.dtype} {weights.shape}")
    out = np.empty((x.shape[0], weights.shape[0]), np.float32)
    multiplier(block_type)(np.ascontiguousarray(weights), np.ascontiguousarray(x), out)
    return out


def _few_columns(product: RowProduct, columns: int) -> Multiply:
    """The GEMV loop over rows, parallel over rows: one thread computes a row's whole results. x may have fewer columns."""
    allocate, addresses, prepare = _preparation(product.activations)
    rows_of = product.rows(columns)

    @inline
    def multiply_rows(share: Any, weights: Any, arrays: Any, n: Any, out: Any) -> None:
        packed, activations = address(weights, np.uint8), addresses(arrays)
        end = min((share + 1) * _SHARE, weights.shape[0])
        rows_of(packed, weights.shape[1], share * _SHARE, end, activations, n, out)

    @parallel_kernel
    def multiply_few(pool: Any, weights: Any, x: Any, out: Any) -> None:
        rows, n = weights.shape[0], x.shape[1]
        arrays = allocate(columns, n)
        for column in range(columns):
            prepare(column, x, arrays)
        parallel_for(pool, (rows + _SHARE - 1) // _SHARE, multiply_rows, (weights, arrays, n, out))

    return multiply_few


def _columns(product: TileProduct, block_type: BlockType) -> Multiply:
    """The GEMM loops over tiles and columns, parallel over rows of tiles.

    While a panel is multiplied, the next one is prefetched, a few rows before each group of columns: the tile's next panel,
    or the first of the next tile, which mostly the same thread multiplies.
    """
    allocate, addresses, prepare = _preparation(product.activations)
    allocate_tile, unpack, multiply = product.allocate, product.unpack, product.multiply
    panel_bytes = block_type.row_bytes(STRETCH)
    step, unit = product.columns, product.activations.unit

    @inline
    def multiply_tile(tile: Any, weights: Any, arrays: Any, n: Any, out: Any) -> None:
        columns, rows = out.shape
        padded = columns + (-columns) % step
        sums, starts = np.zeros((padded, ROWS), np.float32), np.empty(ROWS, np.intp)
        scratch, packed, activations = allocate_tile(), address(weights, np.uint8), addresses(arrays)
        target = address(out, np.float32)
        for r in range(ROWS):
            starts[r] = min(tile * ROWS + r, rows - 1) * weights.shape[1]
        for first in range(0, n, STRETCH):
            width = min(STRETCH, n - first)
            unpack(packed, starts, first, width, scratch)
            ahead = (first // STRETCH + 1) * panel_bytes if first + STRETCH < n else ROWS * weights.shape[1]
            for column in range(0, padded, step):
                for r in range(column * ROWS // padded, (column + step) * ROWS // padded):
                    prefetch_bytes(packed, starts[np.uintp(r)] + ahead, panel_bytes)
                place = place_of(first, column, padded, width + width % unit)
                multiply(scratch, activations, place, width, address(sums[column], np.float32))
        whole = min(ROWS, rows - tile * ROWS) // LANES * LANES
        for column in range(columns):
            source, place = address(sums[column], np.float32), column * rows + tile * ROWS
            for r in range(0, whole, LANES):
                store(target, place + r, load(source, r, LANES))
            for r in range(whole, min(ROWS, rows - tile * ROWS)):
                store(target, place + r, load(source, r, 1))

    @parallel_kernel
    def multiply_many(pool: Any, weights: Any, x: Any, out: Any) -> None:
        rows, (columns, n) = weights.shape[0], x.shape
        padded = columns + (-columns) % step
        arrays = allocate(padded, n)
        parallel_for(pool, padded, prepare, (x, arrays))
        parallel_for(pool, (rows + ROWS - 1) // ROWS, multiply_tile, (weights, arrays, n, out))

    return multiply_many


def _preparation(activations: Activations) -> tuple[Any, Any, Any]:
    return activations.allocate, activations.addresses, activations.prepare
