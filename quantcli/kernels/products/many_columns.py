"""GEMM: products with many columns. A tile of weights is unpacked once and multiplied by all columns.

A tile is `ROWS` rows by a panel of their length. It is transposed so that a vector holds neighbouring rows at the same
column and each lane accumulates its own row. The cost of unpacking is amortized over the columns. One loop serves all
packed types; those of the plain types are in `float_tiles`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import BlockType
from quantcli.kernels.blocks.reader import MAX_GROUPS, PackedReader
from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.products.activation_layout import PART, QUAD, STRETCH, Activations, Rounding, rounded
from quantcli.kernels.products.few_columns import coded, span_of
from quantcli.kernels.simd import (
    LANES,
    grid_operations,
    local,
    machine_features,
    recast,
    reinterpret,
    store,
    transpose_tile,
)

_MANY_REGISTERS: Final = "avx512f" in machine_features()
ROW_VECTORS: Final = 2 if _MANY_REGISTERS else 1
COLUMNS: Final = 4
"""Columns of a register tile. With `ROW_VECTORS` the accumulators are eight or four vectors of integers, as many of floats
for a span, and as many for the panel."""

ROWS: Final = ROW_VECTORS * LANES
"""Rows of a tile."""

_ROW_STARTS: Final = np.arange(ROWS)
_WORDS: Final = STRETCH // QUAD
_CODES: Final = ROWS * _WORDS
_SCALES: Final = ROWS * MAX_GROUPS
_CODE_STARTS: Final = _WORDS * _ROW_STARTS
_SCALE_STARTS: Final = MAX_GROUPS * _ROW_STARTS

_grid = grid_operations(ROW_VECTORS, COLUMNS, LANES)
zero_grid, read_grid, write_grid, add_outer = _grid.zeros, _grid.read, _grid.write, _grid.add_outer
_no_integers, _columns_of = _grid.no_integers, _grid.columns_of
_add_quads, _add_scaled, _add_columns = _grid.add_quads, _grid.add_scaled, _grid.add_columns


@dataclass(frozen=True, slots=True)
class TileProduct:
    """The `inline` functions of a type that the loop of `matmul` over many columns calls.

    allocate()                                       scratch memory for an unpacked tile: addresses
    unpack(weights, starts, first, width, scratch)   unpacks `width` weights from `first` on of `ROWS` rows, which begin at
                                                     bytes `starts`
    multiply(scratch, activations, at, width, sums)  adds the products with `columns` columns, which begin at `at`, to
                                                     sums[c * ROWS + r], float32; `activations` and `sums` are addresses
    """

    activations: Activations
    columns: int
    allocate: Callable[..., Any]
    unpack: Callable[..., None]
    multiply: Callable[..., None]


@inline_once
def _transpose(source: Any, starts: Any, count: Any, target: Any) -> None:
    """Transpose: target[place * ROWS + r] = source[starts[r] + place] for `count` places, a multiple of `LANES`."""
    for row in range(0, ROWS, LANES):
        for place in range(0, count, LANES):
            transpose_tile(source, starts, row, place, target, place * ROWS + row, ROWS, LANES)


def packed_tiles(reader: PackedReader, block_type: BlockType) -> TileProduct:
    """Integer dot products of codes per group, then multiplied by the scales of its rows."""
    codes_of, zero = coded(reader)
    span, group = span_of(block_type), reader.group
    block, block_bytes, parts = block_type.block_length, block_type.block_bytes, block_type.block_length // PART
    block_words, part_words = block // QUAD, PART // QUAD
    block_groups, span_groups, steps = block // group, span // group, group // QUAD
    has_starts, has_minimums, signed = zero != 0, reader.minimums is not None, reader.signed and zero == 0
    scales_of, minimums_of = reader.scales, reader.minimums or reader.scales
    code_dtype = np.int8 if signed else np.uint8

    @inline
    def allocate() -> Any:
        row_codes, codes = local(_CODES, np.uint32), local(_CODES, np.uint32)
        return row_codes, codes, local(_SCALES, np.float32), local(_SCALES, np.float32), local(_SCALES, np.float32)

    @inline_once
    def unpack(weights: Any, starts: Any, first: Any, width: Any, scratch: Any) -> None:
        row_codes, codes, row_scales, scales, minimums = scratch
        for r in range(ROWS):
            place = starts[np.uintp(r)] + first // block * block_bytes
            for b in range(width // block):
                offset = place + b * block_bytes
                for part in range(parts):
                    words = reinterpret(codes_of(weights, offset, part), np.uint32)
                    store(row_codes, r * _WORDS + b * block_words + part * part_words, words)
                store(row_scales, r * MAX_GROUPS + b * block_groups, scales_of(weights, offset))
        _transpose(row_codes, _CODE_STARTS, _WORDS, codes)
        _transpose(row_scales, _SCALE_STARTS, MAX_GROUPS, scales)
        if has_minimums:
            for r in range(ROWS):
                place = starts[np.uintp(r)] + first // block * block_bytes
                for b in range(width // block):
                    store(row_scales, r * MAX_GROUPS + b * block_groups, -minimums_of(weights, place + b * block_bytes))
            _transpose(row_scales, _SCALE_STARTS, MAX_GROUPS, minimums)

    @inline
    def multiply(scratch: Any, activations: Any, at: Any, width: Any, sums: Any) -> None:
        _, words, _, scales, minimums = scratch
        quants, x_scales, starts, x_sums = activations
        codes = recast(words, code_dtype)
        total = read_grid(sums, 0, ROWS)
        for s in range(width // span):
            inner = zero_grid()
            for g in range(s * span_groups, (s + 1) * span_groups):
                whole = _columns_of(starts, at // group + g, width // group) if has_starts else _no_integers()
                for step in range(g * steps, (g + 1) * steps):
                    whole = _add_quads(whole, codes, step * QUAD * ROWS, quants, at + step * QUAD, width)
                inner = _add_scaled(inner, whole, scales, g * ROWS)
            total = _add_columns(total, inner, x_scales, at // span + s, width // span)
        if has_minimums:
            for g in range(width // group):
                total = add_outer(total, minimums, g * ROWS, x_sums, at // group + g, width // group)
        write_grid(total, sums, 0, ROWS)

    rounding = Rounding(span, group, group, zero, has_minimums)
    return TileProduct(rounded(rounding), COLUMNS, allocate, unpack, multiply)
