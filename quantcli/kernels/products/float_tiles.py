"""GEMM with weights of plain types: floats times floats, in the tiles of `many_columns`.

Weights are cast to float32 and multiplied by FMA. BF16 weights are not cast where the machine has dot products of bfloat16:
a lane holds two neighbouring weights of its row, and one instruction multiplies both. `simd.bfloat_dot` says how it rounds.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from quantcli.core.block_types import BlockType
from quantcli.kernels.blocks.reader import PlainReader
from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.products.activation_layout import BFLOAT_PAIRS, STRETCH, floats
from quantcli.kernels.products.many_columns import ROW_VECTORS, ROWS, TileProduct
from quantcli.kernels.simd import (
    HAS_BFLOAT_DOT,
    LANES,
    grid_operations,
    load,
    load_scalar,
    local,
    reinterpret,
    splat,
    store,
    transpose_tile,
)

_COLUMNS: Final = 8
"""Columns of a register tile. With `ROW_VECTORS` the accumulators are 16 or 8 vectors. On Zen 5 two FMAs start in a cycle
and take four cycles, dot products of bfloat16 six: at least 8 and 12 accumulators keep the units busy."""

_PAIR_BYTES: Final = 4
_VECTOR_BYTES: Final = _PAIR_BYTES * LANES
_FLOATS: Final = ROWS * STRETCH
_PAIRS: Final = ROWS * STRETCH // 2
_SQUARE: Final = LANES * LANES
_SQUARE_STARTS: Final = LANES * np.arange(LANES)

_grid = grid_operations(ROW_VECTORS, _COLUMNS, LANES)
_read_grid, _write_grid, _add_outer, _add_bfloats = _grid.read, _grid.write, _grid.add_outer, _grid.add_bfloats


def float_tiles(reader: PlainReader, block_type: BlockType) -> TileProduct:
    """The tiles of a plain type."""
    return _bfloat_tiles() if block_type.activation == "BF16" and HAS_BFLOAT_DOT else _cast_tiles(reader, block_type)


def _cast_tiles(reader: PlainReader, block_type: BlockType) -> TileProduct:
    """Weights cast to float32."""
    widen, widen_one, size = reader.widen, reader.widen_one, block_type.block_bytes

    @inline
    def allocate() -> Any:
        return local(_SQUARE, np.float32), local(_FLOATS, np.float32)

    @inline_once
    def unpack(weights: Any, starts: Any, first: Any, width: Any, scratch: Any) -> None:
        square, values = scratch
        whole = width - width % LANES
        for side in range(0, ROWS, LANES):
            for i in range(0, whole, LANES):
                for r in range(LANES):
                    place = starts[np.uintp(side + r)] + (first + i) * size
                    store(square, r * LANES, widen(weights, place))
                transpose_tile(square, _SQUARE_STARTS, 0, 0, values, i * ROWS + side, ROWS, LANES)
        for r in range(ROWS):
            place = starts[np.uintp(r)] + first * size
            for i in range(whole, width):
                store(values, i * ROWS + r, splat(widen_one(weights, place + i * size), 1))

    @inline
    def multiply(scratch: Any, activations: Any, at: Any, width: Any, sums: Any) -> None:
        values, (x,) = scratch[1], activations
        total = _read_grid(sums, 0, ROWS)
        for i in range(width):
            total = _add_outer(total, values, i * ROWS, x, at + i, width)
        _write_grid(total, sums, 0, ROWS)

    return TileProduct(floats(block_type), _COLUMNS, allocate, unpack, multiply)


def _bfloat_tiles() -> TileProduct:
    """bfloat16 weights, in words of two."""

    @inline
    def allocate() -> Any:
        return local(_SQUARE, np.uint32), local(_PAIRS, np.uint32)

    @inline_once
    def unpack(weights: Any, starts: Any, first: Any, width: Any, scratch: Any) -> None:
        square, words = scratch
        pairs = width // 2
        whole = pairs - pairs % LANES
        for side in range(0, ROWS, LANES):
            for i in range(0, whole, LANES):
                for r in range(LANES):
                    place = starts[np.uintp(side + r)] + 2 * first + _PAIR_BYTES * i
                    store(square, r * LANES, reinterpret(load(weights, place, _VECTOR_BYTES), np.uint32))
                transpose_tile(square, _SQUARE_STARTS, 0, 0, words, i * ROWS + side, ROWS, LANES)
        for r in range(ROWS):
            place = starts[np.uintp(r)] + 2 * first
            for i in range(whole, pairs):
                store(words, i * ROWS + r, splat(load_scalar(weights, place + _PAIR_BYTES * i, np.uint32), 1))
            if width % 2:
                last = np.uint32(load_scalar(weights, place + _PAIR_BYTES * pairs, np.uint16))
                store(words, pairs * ROWS + r, splat(last, 1))

    @inline
    def multiply(scratch: Any, activations: Any, at: Any, width: Any, sums: Any) -> None:
        words, (x,) = scratch[1], activations
        total, pairs, start = _read_grid(sums, 0, ROWS), (width + 1) // 2, at // 2
        for i in range(pairs):
            total = _add_bfloats(total, words, i * ROWS, x, start + i, pairs)
        _write_grid(total, sums, 0, ROWS)

    return TileProduct(BFLOAT_PAIRS, _COLUMNS, allocate, unpack, multiply)
