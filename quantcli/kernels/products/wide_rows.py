"""Rows of the products with few columns where a register holds 64 codes (AVX-512 with VNNI), for types with `WideCodes`.

256 codes are unpacked into four registers and then multiplied by one column after another. The activations are stored in
the order of the codes, so codes need no shuffles.

Dot products, multiplications and FMAs share two ports of the processor, which bound the products of several columns. The
same lane of the four registers has codes of the same group. So the four dot products are one chain, and its 16 sums take
one multiplication of the scales of both sides, and one FMA: six instructions on those ports for 256 products, four of
which are the dot products. Minimums are another FMA, for two columns at once where groups have 32 weights. Zero points are
initial values of the chain: as minimums they were slower. So were two rows at once, which share the loads of the
activations: the weights then come from two places of memory, and eight columns need more registers than there are.

Eight columns of a long row do not fit into the first-level cache. From the second level they took four times as long. So
several rows are multiplied together, one panel of activations after another, and the sums of each row are kept between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import BlockType
from quantcli.kernels.blocks.reader import PART, WideCodes
from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.products.activation_layout import QUAD, STRETCH
from quantcli.kernels.products.prefetching import AHEAD, prefetch_bytes
from quantcli.kernels.simd import (
    advance,
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

_TOGETHER: Final = 8
"""The rows that are multiplied together where they are divided."""

_DIVIDED: Final = 8
"""From how many columns on long rows are divided into panels. For four it made short rows 5 percent slower."""

_PANEL: Final = 24576
"""The bytes of a panel's activations, of all columns: half of the first-level cache. With 40 KiB some rows took twice as
long."""

_PARTS_AHEAD: Final = 4
"""How many rows' parts the prefetch is ahead where rows are divided."""

_ZERO = np.float32(0)
_NO_PRODUCT = np.int32(0)


def wide_rows(
    wide: WideCodes,
    group: int,
    scales_of: Callable[..., Any],
    minimums_of: Callable[..., Any] | None,
    add_rest: Callable[..., None],
    block_type: BlockType,
    columns: int,
) -> Callable[..., None]:
    """Super-blocks, or eight small blocks at a time: the `inline` function of `RowProduct.rows`.

    group                    the weights that share a scale
    scales_of, minimums_of   `inline` functions (weights, offset) for the scales and minimums of 256 weights, a float32 lane
                             per group
    add_rest                 the `inline` function for a small block that remains at a row's end
    """
    groups, stretch_bytes, one_scale = STRETCH // group, block_type.row_bytes(STRETCH), block_type.block_length == STRETCH
    add_stretch = _stretch_adder(wide, group, scales_of, minimums_of, one_scale, columns)
    finish = _finisher(groups, minimums_of is not None, add_rest, block_type, columns)
    if columns < _DIVIDED:
        return _whole_rows(add_stretch, finish, stretch_bytes, columns, groups)
    numbers = (1 if one_scale else _LANES) + (_LANES if wide.zero else 0) + (groups if minimums_of else 0)
    panel = _PANEL // (columns * (STRETCH + 4 * numbers))
    return _rows_in_panels(add_stretch, finish, stretch_bytes, columns, groups, panel)


def _whole_rows(
    add_stretch: Callable[..., None], finish: Callable[..., None], stretch_bytes: int, columns: int, groups: int
) -> Callable[..., None]:
    """`wide_rows` row by row."""
    all_lanes, all_groups = columns * _LANES, columns * groups

    @inline_once
    def whole(weights: Any, row_bytes: Any, start: Any, end: Any, activations: Any, n: Any, out: Any) -> None:
        totals, taken = local(all_lanes, np.float32), local(all_groups, np.float32)
        for row in range(start, end):
            offset = row * row_bytes
            _clear(totals, taken, columns, groups)
            for i in range(n // STRETCH):
                prefetch_bytes(weights, offset + AHEAD, stretch_bytes)
                add_stretch(weights, offset, activations, i, totals, taken)
                offset += stretch_bytes
            finish(weights, offset, activations, n, totals, taken, row, out)

    return whole


def _rows_in_panels(
    add_stretch: Callable[..., None], finish: Callable[..., None], stretch_bytes: int, columns: int, groups: int, panel: int
) -> Callable[..., None]:
    """`wide_rows` in panels of `panel` times 256 weights."""
    all_lanes, all_groups, panel_bytes = columns * _LANES, columns * groups, panel * stretch_bytes
    kept_lanes, kept_groups = _TOGETHER * all_lanes, _TOGETHER * all_groups

    @inline_once
    def in_panels(weights: Any, row_bytes: Any, start: Any, end: Any, activations: Any, n: Any, out: Any) -> None:
        totals, taken, stretches = local(all_lanes, np.float32), local(all_groups, np.float32), n // STRETCH
        kept, kept_taken = local(kept_lanes, np.float32), local(kept_groups, np.float32)
        panels = max((stretches + panel - 1) // panel, 1)
        for number in range((end - start + _TOGETHER - 1) // _TOGETHER * panels):
            above, first = start + number // panels * _TOGETHER, number % panels * panel
            count, last = min(_TOGETHER, end - above), min(first + panel, stretches)
            for row in range(count):
                offset, ahead = (above + row) * row_bytes + first * stretch_bytes, AHEAD
                if stretches > panel:
                    ahead = _ahead(row, count, row_bytes, first * stretch_bytes, last < stretches, panel_bytes)
                own, own_taken = advance(kept, row * all_lanes), advance(kept_taken, row * all_groups)
                if first == 0:
                    _clear(totals, taken, columns, groups)
                else:
                    _copy(own, own_taken, totals, taken, columns, groups)
                for i in range(first, last):
                    prefetch_bytes(weights, offset + ahead, stretch_bytes)
                    add_stretch(weights, offset, activations, i, totals, taken)
                    offset += stretch_bytes
                if last < stretches:
                    _copy(totals, taken, own, own_taken, columns, groups)
                else:
                    finish(weights, offset, activations, n, totals, taken, above + row, out)

    return in_panels


@inline_once
def _clear(totals: Any, taken: Any, columns: Any, groups: Any) -> None:
    """Zero the sums of a row."""
    for c in range(columns):
        store(totals, c * _LANES, splat(_ZERO, _LANES))
        store(taken, c * groups, splat(_ZERO, groups))


@inline_once
def _copy(totals: Any, taken: Any, totals_out: Any, taken_out: Any, columns: Any, groups: Any) -> None:
    """Copy the sums of a row."""
    for c in range(columns):
        store(totals_out, c * _LANES, load(totals, c * _LANES, _LANES))
        store(taken_out, c * groups, load(taken, c * groups, groups))


@inline
def _ahead(row: Any, count: Any, row_bytes: Any, done: Any, more: Any, panel_bytes: Any) -> Any:
    """The distance in bytes from a row's part of a panel to that which is multiplied `_PARTS_AHEAD` later: of a row of the
    same panel, of the next panel, or of the next rows' first panel. `done`: bytes of the row before the panel."""
    if row + _PARTS_AHEAD < count:
        return _PARTS_AHEAD * row_bytes
    if more:
        return panel_bytes + (_PARTS_AHEAD - count) * row_bytes
    return _PARTS_AHEAD * row_bytes - done


def _finisher(
    groups: int, has_minimums: bool, add_rest: Callable[..., None], block_type: BlockType, columns: int
) -> Callable[..., None]:
    """The `inline` function for the end of a row: it adds the products of small blocks after the last 256 weights, from
    byte `offset` on, and stores the results."""
    block_bytes, has_rest, part_lanes = block_type.block_bytes, block_type.block_length != STRETCH, PART // QUAD
    all_part_lanes = columns * part_lanes

    @inline_once
    def finish(
        weights: Any, offset: Any, activations: Any, n: Any, totals: Any, taken: Any, row: Any, out: Any
    ) -> None:
        results, sums = local(columns, np.float32), sum_rows(totals, columns, _LANES)
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
        for c in range(out.shape[0]):
            out[c, row] = results[c]

    return finish


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
