"""Rows of the products with few columns where a register holds 64 codes (AVX-512 with VNNI), for types with `WideCodes`.

256 codes are unpacked into four registers and then multiplied by one column after another. The activations are stored in
the order of the codes, so codes need no shuffles.

Dot products, multiplications and FMAs share two ports of the processor, which bound the products of several columns. The
same lane of the four registers has codes of the same group. So the four dot products are one chain, and its 16 sums take
one multiplication of the scales of both sides, and one FMA: six instructions on those ports for 256 products, four of
which are the dot products. Minimums are another FMA, for two columns at once where groups have 32 weights. Zero points are
initial values of the chain: as minimums they were slower. So were two rows at once, which share the loads of the
activations: the weights then come from two places of memory, and eight columns need more registers than there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import BlockType
from quantcli.kernels.blocks.reader import PART, WideCodes
from quantcli.kernels.jit import inline_once
from quantcli.kernels.products.activation_layout import QUAD, STRETCH
from quantcli.kernels.products.prefetching import AHEAD, prefetch_bytes
from quantcli.kernels.simd import (
    convert,
    dot_quads,
    fma,
    lane,
    load,
    local,
    shuffle,
    splat,
    store,
    sum_rows,
)

_CODES: Final = 64
_LANES: Final = _CODES // QUAD

_ZERO = np.float32(0)
_NO_PRODUCT = np.int32(0)


def wide_row(
    wide: WideCodes,
    group: int,
    scales_of: Callable[..., Any],
    minimums_of: Callable[..., Any] | None,
    add_rest: Callable[..., None],
    block_type: BlockType,
    columns: int,
) -> Callable[..., None]:
    """Super-blocks, or eight small blocks at a time: the `inline` function of `RowProduct.row`.

    group                    the weights that share a scale
    scales_of, minimums_of   `inline` functions (weights, offset) for the scales and minimums of 256 weights, a float32 lane
                             per group
    add_rest                 the `inline` function for a small block that remains at a row's end
    """
    block_bytes, one_scale, groups = block_type.block_bytes, block_type.block_length == STRETCH, STRETCH // group
    stretch_bytes, part_lanes = STRETCH // block_type.block_length * block_bytes, PART // QUAD
    all_lanes, all_groups, all_part_lanes = columns * _LANES, columns * groups, columns * part_lanes
    add_stretch = _stretch_adder(wide, group, scales_of, minimums_of, one_scale, columns)
    has_minimums, has_rest = minimums_of is not None, not one_scale

    @inline_once
    def row(weights: Any, offset: Any, activations: Any, n: Any, results: Any) -> None:
        totals, taken = local(all_lanes, np.float32), local(all_groups, np.float32)
        for c in range(columns):
            store(totals, c * _LANES, splat(_ZERO, _LANES))
            store(taken, c * groups, splat(_ZERO, groups))
        for i in range(n // STRETCH):
            prefetch_bytes(weights, offset + AHEAD, stretch_bytes)
            add_stretch(weights, offset, activations, i, totals, taken)
            offset += stretch_bytes
        sums = sum_rows(totals, columns, _LANES)
        if has_minimums:
            sums = sums - sum_rows(taken, columns, groups)
        if has_rest and n % STRETCH != 0:
            rest, rest_taken = local(all_part_lanes, np.float32), local(columns, np.float32)
            for c in range(columns):
                store(rest, c * part_lanes, splat(_ZERO, part_lanes))
                store(rest_taken, c, splat(_ZERO, 1))
            panel = n // STRETCH * STRETCH
            for place in range(0, n - panel, PART):
                for c in range(columns):
                    at = panel * columns + c * (n - panel) + place
                    add_rest(weights, offset, activations, at, c, rest, rest_taken)
                offset += block_bytes
            sums = sums + (sum_rows(rest, columns, part_lanes) - load(rest_taken, 0, columns))
        store(results, 0, sums)

    return row


def _stretch_adder(
    wide: WideCodes,
    group: int,
    scales_of: Callable[..., Any],
    minimums_or_none: Callable[..., Any] | None,
    one_scale: bool,
    columns: int,
) -> Callable[..., None]:
    """The `inline` function that adds the products of 256 weights to each column's 16 sums, and those of their minimums to
    one for each group. `one_scale`: whether their activations have one scale, not eight."""
    codes_of, has_starts, has_minimums = wide.codes, wide.zero != 0, minimums_or_none is not None
    minimums_of, groups = minimums_or_none or scales_of, STRETCH // group
    spread = shuffle(*(four * QUAD // group for four in wide.order[:_LANES]))
    together = min(columns, _LANES // groups)
    few_groups, repeat = together * groups, shuffle(*(g for _ in range(together) for g in range(groups)))

    @inline_once
    def add_stretch(weights: Any, offset: Any, activations: Any, i: Any, totals: Any, taken: Any) -> None:
        quants, x_scales, starts, sums = activations
        (a, b, c, d), scales = codes_of(weights, offset), scales_of(weights, offset)
        scales = spread(scales, scales)
        if has_minimums:
            minimums = minimums_of(weights, offset)
            repeated = repeat(minimums, minimums)
            for column in range(0, columns, together):
                own, at = load(sums, (i * columns + column) * groups, few_groups), column * groups
                store(taken, at, fma(repeated, own, load(taken, at, few_groups)))
        for column in range(columns):
            place = i * columns + column
            at = place * STRETCH
            if one_scale:
                own = scales * splat(lane(load(x_scales, place, 1), 0), _LANES)
            else:
                own = scales * load(x_scales, place * _LANES, _LANES)
            dots = load(starts, place * _LANES, _LANES) if has_starts else splat(_NO_PRODUCT, _LANES)
            dots = dot_quads(dot_quads(dots, a, load(quants, at, _CODES)), b, load(quants, at + 64, _CODES))
            dots = dot_quads(dot_quads(dots, c, load(quants, at + 128, _CODES)), d, load(quants, at + 192, _CODES))
            total = load(totals, column * _LANES, _LANES)
            store(totals, column * _LANES, fma(convert(dots, np.float32), own, total))

    return add_stretch
