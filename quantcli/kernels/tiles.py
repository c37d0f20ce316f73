"""Products with many columns: a tile of weights is unpacked once and all columns pass over it.

A tile is `ROWS` rows by a stretch of their length. Rows become lanes: the tile is laid out so that a vector holds what
neighbouring rows have at the same place, and each lane sums up a row of its own. What a type costs to unpack no longer
counts then, and one loop serves all packed types, another all plain ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from quantcli.kernels.columns import PART, PLAIN, QUAD, STRETCH, Activations, Rounding, place_of, rounded
from quantcli.kernels.dots import PackedDot, PlainDot
from quantcli.kernels.jit import inline
from quantcli.kernels.products import coded, span_of
from quantcli.kernels.simd import LANES, grid_operations, load, machine_features, store, transpose_tile
from quantcli.kernels.types import BlockType

_MANY_REGISTERS: Final = "avx512f" in machine_features()
_ROW_VECTORS: Final = 2 if _MANY_REGISTERS else 1
COLUMNS: Final = 4
"""Columns that are multiplied together. Their sums stay in registers: with `_ROW_VECTORS`, eight or four of integers, as
many of floats for a span, and as many for the stretch."""

ROWS: Final = _ROW_VECTORS * LANES
"""Rows of a tile."""

_MAX_GROUPS: Final = 16
_LINE: Final = 64
_ROW_STARTS: Final = np.arange(ROWS)
_WORDS: Final = STRETCH // QUAD
_CODE_STARTS: Final = _WORDS * _ROW_STARTS
_SCALE_STARTS: Final = _MAX_GROUPS * _ROW_STARTS
_FLOAT_STARTS: Final = LANES * np.arange(LANES)

_grid = grid_operations(_ROW_VECTORS, COLUMNS, LANES)
_zeros, _read, _write, _columns_of = _grid.zeros, _grid.read, _grid.write, _grid.columns_of
_add_outer, _add_quads, _add_scaled, _add_columns = _grid.add_outer, _grid.add_quads, _grid.add_scaled, _grid.add_columns


@dataclass(frozen=True, slots=True)
class TileProduct:
    """The `inline` functions of a type that the loop of `matmul` over many columns calls.

    room()                                               a thread's own arrays: a tuple that holds an unpacked tile
    unpack(weights, row, first, width, room)             fills it with rows from `row` on, `width` weights from `first` on
    multiply(room, activations, column, first, width, sums)   adds the products with `COLUMNS` columns to
                                                         sums[column * ROWS + r], float32
    """

    activations: Activations
    room: Callable[..., Any]
    unpack: Callable[..., None]
    multiply: Callable[..., None]


@inline
def aligned(count: Any) -> Any:
    """Room for `count` bytes from the begin of a cache line on, which no vector then crosses."""
    room = np.empty(count + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + count]


@inline
def _turn(source: Any, starts: Any, count: Any, target: Any) -> None:
    """target[place * ROWS + r] = source[starts[r] + place] for `count` places, a multiple of `LANES`."""
    for row in range(0, ROWS, LANES):
        for place in range(0, count, LANES):
            transpose_tile(source, starts, row, place, target, place * ROWS + row, ROWS, LANES)


def packed_tiles(dot: PackedDot, block_type: BlockType) -> TileProduct:
    """Codes times codes, summed as integers for a group, then times the scales of its rows."""
    codes_of, zero = coded(dot)
    span, group = span_of(block_type), dot.group
    block, block_bytes, parts = block_type.block_length, block_type.block_bytes, block_type.block_length // PART
    block_groups, span_groups, steps = block // group, span // group, group // QUAD
    has_starts, has_minimums, signed = zero != 0, dot.minimums is not None, dot.signed and zero == 0
    scales_of, minimums_of = dot.scales, dot.minimums or dot.scales
    code_dtype = np.int8 if signed else np.uint8

    @inline
    def room() -> Any:
        unturned, codes = aligned(ROWS * STRETCH), aligned(ROWS * STRETCH)
        few, scales = aligned(4 * ROWS * _MAX_GROUPS), aligned(4 * ROWS * _MAX_GROUPS)
        lows = aligned(4 * ROWS * _MAX_GROUPS if has_minimums else 0)
        return unturned, codes, few.view(np.float32), scales.view(np.float32), lows.view(np.float32)

    @inline
    def unpack(weights: Any, row: Any, first: Any, width: Any, room: Any) -> None:
        unturned, codes, few, scales, lows = room
        for r in range(ROWS):
            place = min(row + r, weights.shape[0] - 1) * weights.shape[1] + first // block * block_bytes
            for b in range(width // block):
                offset = place + b * block_bytes
                for part in range(parts):
                    store(unturned, r * STRETCH + b * block + part * PART, codes_of(weights, offset, part))
                store(few, r * _MAX_GROUPS + b * block_groups, scales_of(weights, offset))
        _turn(unturned.view(np.uint32), _CODE_STARTS, _WORDS, codes.view(np.uint32))
        _turn(few, _SCALE_STARTS, _MAX_GROUPS, scales)
        if has_minimums:
            for r in range(ROWS):
                place = min(row + r, weights.shape[0] - 1) * weights.shape[1] + first // block * block_bytes
                for b in range(width // block):
                    store(few, r * _MAX_GROUPS + b * block_groups, -minimums_of(weights, place + b * block_bytes))
            _turn(few, _SCALE_STARTS, _MAX_GROUPS, lows)

    @inline
    def multiply(room: Any, activations: Any, column: Any, first: Any, width: Any, sums: Any) -> None:
        _, unsigned_codes, _, scales, lows = room
        quants, x_scales, starts, x_sums = activations
        codes = unsigned_codes.view(code_dtype)
        at = place_of(first, column, quants.shape[0], width)
        total = _read(sums, column * ROWS, ROWS)
        for s in range(width // span):
            inner = _zeros()
            for g in range(s * span_groups, (s + 1) * span_groups):
                whole = _columns_of(starts, at // group + g, width // group) if has_starts else _no_integers()
                for step in range(g * steps, (g + 1) * steps):
                    whole = _add_quads(whole, codes, step * QUAD * ROWS, quants, at + step * QUAD, width)
                inner = _add_scaled(inner, whole, scales, g * ROWS)
            total = _add_columns(total, inner, x_scales, at // span + s, width // span)
        if has_minimums:
            for g in range(width // group):
                total = _add_outer(total, lows, g * ROWS, x_sums, at // group + g, width // group)
        _write(total, sums, column * ROWS, ROWS)

    return TileProduct(rounded(Rounding(span, group, group, zero, has_minimums)), room, unpack, multiply)


_NO_INTEGERS: Final = np.zeros(1, np.int32)


@inline
def _no_integers() -> Any:
    return _columns_of(_NO_INTEGERS, 0, 0)


def plain_tiles(dot: PlainDot, block_type: BlockType) -> TileProduct:
    """Floats times floats."""
    widen, widen_one, size = dot.widen, dot.widen_one, block_type.block_bytes

    @inline
    def room() -> Any:
        return aligned(4 * LANES * LANES).view(np.float32), aligned(4 * ROWS * STRETCH).view(np.float32)

    @inline
    def unpack(weights: Any, row: Any, first: Any, width: Any, room: Any) -> None:
        square, values = room
        whole = width - width % LANES
        for side in range(0, ROWS, LANES):
            for i in range(0, whole, LANES):
                for r in range(LANES):
                    place = min(row + side + r, weights.shape[0] - 1) * weights.shape[1] + (first + i) * size
                    store(square, r * LANES, widen(weights, place))
                transpose_tile(square, _FLOAT_STARTS, 0, 0, values, i * ROWS + side, ROWS, LANES)
        for r in range(ROWS):
            place = min(row + r, weights.shape[0] - 1) * weights.shape[1] + first * size
            for i in range(whole, width):
                values[i * ROWS + r] = widen_one(weights, place + i * size)

    @inline
    def multiply(room: Any, activations: Any, column: Any, first: Any, width: Any, sums: Any) -> None:
        values, (x,) = room[1], activations
        at = place_of(first, column, x.shape[0], width)
        total = _read(sums, column * ROWS, ROWS)
        for i in range(width):
            total = _add_outer(total, values, i * ROWS, x, at + i, width)
        _write(total, sums, column * ROWS, ROWS)

    return TileProduct(PLAIN, room, unpack, multiply)
