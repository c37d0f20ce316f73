"""Rows of the products with few columns where a register holds 64 codes (AVX-512 with VNNI), for types with `WideCodes`.

256 codes are unpacked into four registers and then multiplied by one column after another. The activations are stored in
the order of the codes, so codes need no shuffles. Dot products, multiplications and FMAs share two ports of the processor,
which bound the products of several columns. So products are added up as far as the scales allow before they are scaled:

- Integer scales: the int32 sums of two registers, or of four, fit int16. Packed, they are multiplied by scales two at a
  time. A block takes 6 to 8 instructions on those ports per column. Scaling the products of each register by itself, as
  pairs in int16, took 9.
- Float scales: sums of 128 products are cast and multiplied by their scales at once.

Minimums, and zero points under integer scales, are multiplied by the sums of the activations of up to four columns at once.
Under float scales zero points are initial values of the dot products: sums of two columns at once were not faster there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import BlockType
from quantcli.kernels.blocks.reader import PART, IntegerScales, PackedReader, WideCodes
from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.products.activation_layout import QUAD, STRETCH
from quantcli.kernels.products.prefetching import AHEAD, prefetch_bytes
from quantcli.kernels.simd import (
    convert,
    dot_pairs,
    dot_quads,
    fma,
    lane,
    load,
    local,
    narrow,
    shuffle,
    splat,
    store,
    sum_lanes,
)

_CODES: Final = 64
_LANES: Final = _CODES // QUAD
_HALF: Final = STRETCH // 2
_GROUPS: Final = STRETCH // PART
_MOST_PAIRS: Final = 32
"""Integers of 16 bits in a register."""

_ZERO = np.float32(0)
_NO_PRODUCT = np.int32(0)


def _groups_of_lanes(wide: WideCodes, vectors: tuple[int, ...], group: int) -> list[int]:
    """The group that each lane of products of some vectors belongs to, as `narrow` arranges the lanes."""
    sixteens = [wide.order[4 * vector + quarter] for quarter in range(4) for vector in vectors]
    return [sixteen * 16 // group for sixteen in sixteens for _ in range(QUAD)]


def integer_row(
    reader: PackedReader, wide: WideCodes, integers: IntegerScales, block_type: BlockType, columns: int
) -> Callable[..., None]:
    """Super-blocks with integer sub-block scales: the `inline` function of `RowProduct.row`. The zero point is treated as a
    minimum: zero times the scale."""
    codes_of, scales_of, scale_of = wide.codes, integers.quantized_scales, integers.scale
    block_bytes, groups, has_zero, zero = block_type.block_bytes, STRETCH // reader.group, wide.zero != 0, wide.zero
    minimums_of, minimum_scale_of = integers.quantized_minimums or scales_of, integers.minimum_scale or scale_of
    minus, half, together = np.float32(zero), groups // 2, min(columns, _MOST_PAIRS // groups)
    repeat = shuffle(*(group for _ in range(together) for group in range(groups)))
    spread = shuffle(*(column for column in range(together) for _ in range(half)))
    scaled_dots = _integer_dots(wide, reader.group)
    all_lanes, all_halves, some_groups, some_halves = columns * _LANES, columns * half, together * groups, together * half

    @inline
    def subtract(minimums: Any, scale: Any, activations: Any, i: Any, taken: Any) -> None:
        _, x_scales, _, sums = activations
        repeated = repeat(minimums, minimums)
        for c in range(0, columns, together):
            products = convert(dot_pairs(repeated, load(sums, (i * columns + c) * groups, some_groups)), np.float32)
            few = load(x_scales, i * columns + c, together) * scale
            total = load(taken, c * half, some_halves)
            store(taken, c * half, fma(products, spread(few, few), total))

    @inline_once
    def row(weights: Any, offset: Any, activations: Any, n: Any, results: Any) -> None:
        quants, x_scales, _, _ = activations
        totals, taken = local(all_lanes, np.float32), local(all_halves, np.float32)
        factors = local(columns, np.float32)
        for c in range(columns):
            store(totals, c * _LANES, splat(_ZERO, _LANES))
            store(taken, c * half, splat(_ZERO, half))
        for i in range(n // STRETCH):
            prefetch_bytes(weights, offset + AHEAD, block_bytes)
            codes, scales = codes_of(weights, offset), scales_of(weights, offset)
            scale = scale_of(weights, offset)
            store(factors, 0, load(x_scales, i * columns, columns) * scale)
            for c in range(columns):
                dots = convert(scaled_dots(codes, scales, quants, (i * columns + c) * STRETCH), np.float32)
                total = load(totals, c * _LANES, _LANES)
                store(totals, c * _LANES, fma(dots, splat(lane(load(factors, c, 1), 0), _LANES), total))
            if has_zero:
                subtract(scales, scale * minus, activations, i, taken)
            else:
                subtract(minimums_of(weights, offset), minimum_scale_of(weights, offset), activations, i, taken)
            offset += block_bytes
        for c in range(columns):
            results[c] = sum_lanes(load(totals, c * _LANES, _LANES)) - sum_lanes(load(taken, c * half, half))

    return row


def _integer_dots(wide: WideCodes, group: int) -> Callable[..., Any]:
    """The `inline` function for 256 products, multiplied by the integer scales of their groups: 16 sums, int32."""
    first_of = shuffle(*_groups_of_lanes(wide, (0, 1) if group == 16 else (0, 2), group))
    second_of = shuffle(*_groups_of_lanes(wide, (2, 3), group))

    @inline
    def by_halves(codes: Any, scales: Any, quants: Any, at: Any) -> Any:
        a, b, c, d = codes
        nothing = splat(_NO_PRODUCT, _LANES)
        first = dot_quads(dot_quads(nothing, a, load(quants, at, _CODES)), b, load(quants, at + 64, _CODES))
        second = dot_quads(dot_quads(nothing, c, load(quants, at + 128, _CODES)), d, load(quants, at + 192, _CODES))
        return dot_pairs(narrow(first, second), first_of(scales, scales))

    @inline
    def by_quarters(codes: Any, scales: Any, quants: Any, at: Any) -> Any:
        a, b, c, d = codes
        nothing = splat(_NO_PRODUCT, _LANES)
        first = narrow(
            dot_quads(nothing, a, load(quants, at, _CODES)), dot_quads(nothing, b, load(quants, at + 64, _CODES))
        )
        second = narrow(
            dot_quads(nothing, c, load(quants, at + 128, _CODES)), dot_quads(nothing, d, load(quants, at + 192, _CODES))
        )
        return dot_pairs(first, first_of(scales, scales)) + dot_pairs(second, second_of(scales, scales))

    return by_quarters if group == 16 else by_halves


def float_row(
    reader: PackedReader,
    wide: WideCodes,
    scales_of: Callable[..., Any],
    minimums_of: Callable[..., Any],
    add_rest: Callable[..., None],
    block_type: BlockType,
    columns: int,
) -> Callable[..., None]:
    """Super-blocks, or eight small blocks at a time, with eight float scales: the `inline` function of `RowProduct.row`.

    scales_of, minimums_of   `inline` functions (weights, offset) for the eight scales and minimums
    add_rest                 the `inline` function for a small block that remains at a row's end
    """
    block_bytes, one_scale = block_type.block_bytes, block_type.block_length == STRETCH
    stretch_bytes, part_lanes = STRETCH // block_type.block_length * block_bytes, PART // QUAD
    all_lanes, all_groups, all_part_lanes = columns * _LANES, columns * _GROUPS, columns * part_lanes
    add_stretch = _stretch_adder(wide, scales_of, minimums_of if reader.minimums else None, one_scale, columns)

    @inline_once
    def row(weights: Any, offset: Any, activations: Any, n: Any, results: Any) -> None:
        totals, taken = local(all_lanes, np.float32), local(all_groups, np.float32)
        rest, rest_taken = local(all_part_lanes, np.float32), local(columns, np.float32)
        for c in range(columns):
            store(totals, c * _LANES, splat(_ZERO, _LANES))
            store(taken, c * _GROUPS, splat(_ZERO, _GROUPS))
            store(rest, c * part_lanes, splat(_ZERO, part_lanes))
            store(rest_taken, c, splat(_ZERO, 1))
        for i in range(n // STRETCH):
            prefetch_bytes(weights, offset + AHEAD, stretch_bytes)
            add_stretch(weights, offset, activations, i, totals, taken)
            offset += stretch_bytes
        if not one_scale:
            panel = n // STRETCH * STRETCH
            for place in range(0, n - panel, PART):
                for c in range(columns):
                    at = panel * columns + c * (n - panel) + place
                    add_rest(weights, offset, activations, at, c, rest, rest_taken)
                offset += block_bytes
        for c in range(columns):
            subtracted = sum_lanes(load(taken, c * _GROUPS, _GROUPS)) + lane(load(rest_taken, c, 1), 0)
            added = sum_lanes(load(totals, c * _LANES, _LANES)) + sum_lanes(load(rest, c * part_lanes, part_lanes))
            results[c] = added - subtracted

    return row


def _stretch_adder(
    wide: WideCodes,
    scales_of: Callable[..., Any],
    minimums_or_none: Callable[..., Any] | None,
    one_scale: bool,
    columns: int,
) -> Callable[..., None]:
    """The `inline` function that adds the products of 256 weights to each column's 16 sums, and of their minimums to eight.
    `one_scale`: whether their activations have one scale, not eight."""
    codes_of, has_starts, has_minimums = wide.codes, wide.zero != 0, minimums_or_none is not None
    minimums_of = minimums_or_none or scales_of
    first_of, last_of = (shuffle(*_groups_of_lanes(wide, (vector,), PART)) for vector in (0, 2))

    @inline
    def dots_of(a: Any, b: Any, quants: Any, starts: Any, at: Any) -> Any:
        start = load(starts, at // QUAD, _LANES) if has_starts else splat(_NO_PRODUCT, _LANES)
        return convert(
            dot_quads(dot_quads(start, a, load(quants, at, _CODES)), b, load(quants, at + _CODES, _CODES)), np.float32
        )

    @inline_once
    def add_stretch(weights: Any, offset: Any, activations: Any, i: Any, totals: Any, taken: Any) -> None:
        quants, x_scales, starts, sums = activations
        (a, b, c, d), scales = codes_of(weights, offset), scales_of(weights, offset)
        for column in range(columns):
            at = (i * columns + column) * STRETCH
            if one_scale:
                own = scales * splat(lane(load(x_scales, at // STRETCH, 1), 0), _GROUPS)
            else:
                own = scales * load(x_scales, at // PART, _GROUPS)
            total = load(totals, column * _LANES, _LANES)
            total = fma(dots_of(a, b, quants, starts, at), first_of(own, own), total)
            total = fma(dots_of(c, d, quants, starts, at + _HALF), last_of(own, own), total)
            store(totals, column * _LANES, total)
            if has_minimums:
                subtracted = load(taken, column * _GROUPS, _GROUPS)
                minimums = minimums_of(weights, offset)
                store(taken, column * _GROUPS, fma(minimums, load(sums, at // PART, _GROUPS), subtracted))

    return add_stretch
