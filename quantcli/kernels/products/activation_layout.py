"""Activation layout for matrix products: panels of `STRETCH` along the row length, each stored column by column, so that
activations multiplied together are contiguous.

Plain types multiply floats: float32, or for BF16 weights bfloat16. Packed types multiply integers, so activations are first
quantized to int8. Where the type's dot-product partner is Q8_0 or Q8_1 there is one scale per 32, rounded to float16 as in
those blocks. For Q8_K there is one per 256.

Everything here is inlined into the kernels of `matmul`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import SUPER_BLOCK, BlockType
from quantcli.kernels.half import bfloat_to_float, float_to_bfloat, float_to_half, half_to_float
from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.simd import (
    CACHE_LINE,
    LANES,
    absolute,
    address,
    cache_line,
    convert,
    dot_quads,
    load,
    max_lanes,
    maximum,
    reinterpret,
    rint,
    shuffle,
    splat,
    store,
    sum_lanes,
)

STRETCH: Final = SUPER_BLOCK
"""Length of a panel: contiguous numbers of one column. The last panel of a row has the remainder."""

PART: Final = 32
"""Codes unpacked by one call of a reader."""

QUAD: Final = 4
"""Codes whose products accumulate in one lane."""

_ZERO = np.float32(0)
_NOTHING = np.int32(0)
_ONES = np.uint8(1)
_LARGEST_CODE = np.float32(127)


@dataclass(frozen=True, slots=True)
class Activations:
    """The `inline` functions that prepare activations.

    allocate(columns, n)               a tuple of arrays for them
    addresses(arrays)                  the arrays' base addresses
    prepare(column, x, arrays)         fills them for one column of x, float32 (columns, n). A column that x lacks repeats
                                       the last: left as allocated, it may have denormal scales, which multiply slowly
    unit                               the width of a panel in the arrays is rounded up to a multiple of it
    """

    allocate: Callable[..., Any]
    addresses: Callable[..., Any]
    prepare: Callable[..., None]
    unit: int = 1


@inline
def place_of(first: Any, column: Any, columns: Any, width: Any) -> Any:
    """The start of a column in the panel from `first` on, which is `width` long."""
    return first * columns + column * width


def _floats(cast: Callable[..., Any], stored: Any, word: Any) -> Activations:
    """Numbers as `cast` returns them, of dtype `stored`, in words of dtype `word`. Zeros fill up a panel's last word."""
    unit = np.dtype(word).itemsize // np.dtype(stored).itemsize

    @inline
    def allocate(columns: Any, n: Any) -> Any:
        return (np.empty((columns, (n + unit - 1) // unit), word),)

    @inline
    def addresses(arrays: Any) -> Any:
        return (address(arrays[0], word),)

    @inline
    def prepare(column: Any, x: Any, arrays: Any) -> None:
        (words,) = arrays
        columns, n = words.shape[0], x.shape[1]
        flat, values, source = address(words, stored), address(x, np.float32), min(column, x.shape[0] - 1) * n
        for first in range(0, n, STRETCH):
            width = min(STRETCH, n - first)
            filled, whole = (width + unit - 1) // unit * unit, width - width % LANES
            place = place_of(first, column, columns, filled)
            for i in range(0, whole, LANES):
                store(flat, place + i, cast(load(values, source + first + i, LANES)))
            for i in range(whole, width):
                store(flat, place + i, cast(load(values, source + first + i, 1)))
            for i in range(width, filled):
                store(flat, place + i, cast(splat(_ZERO, 1)))

    return Activations(allocate, addresses, prepare, unit)


@inline
def _as_they_are(x: Any) -> Any:
    return x


@inline
def _to_bfloat(x: Any) -> Any:
    return bfloat_to_float(float_to_bfloat(x))


_AS_THEY_ARE: Final = _floats(_as_they_are, np.float32, np.float32)
_ROUNDED: Final = MappingProxyType({"BF16": _floats(_to_bfloat, np.float32, np.float32)})
"""By the activation type of the dot product."""


def floats(block_type: BlockType) -> Activations:
    """float32 activations for a plain type. Those for BF16 are rounded to bfloat16, to nearest even, as in llama.cpp.

    Kernels of BF16 do so on every machine, also where it cannot multiply bfloat16: only the rounding of sums depends on it.
    Activations for F16 are not rounded; llama.cpp rounds them to float16.
    """
    return _ROUNDED.get(block_type.activation or "", _AS_THEY_ARE)


BFLOAT_PAIRS: Final = _floats(float_to_bfloat, np.uint16, np.uint32)
"""bfloat16 activations, rounded to nearest even: uint32 words of two."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How activations are quantized for a packed type.

    span           activations per scale
    group          activations per sum (bsums in Q8_K)
    unit           activations per initial value of the accumulators, which corrects for the type's `zero`
    sums           whether sums are stored: the type has minimums to multiply by them
    whole          whether the sums are stored as integers
    order          how the codes of a whole panel are stored: of every 256, the p-th four are those of the activations from
                   4 * order[p] on (`WideCodes.order`). In their own order if it is empty
    """

    span: int
    group: int
    unit: int
    zero: int
    sums: bool
    whole: bool = False
    order: tuple[int, ...] = ()


def rounded(rounding: Rounding) -> Activations:
    """Quantized activations. Arrays that the type does not use are empty. All begin at a cache line, for which they have
    room: a load of 64 bytes from any other place is two loads.

    codes    int8 (columns, n)
    scales   one for each span. With an `order` and spans of 32, 16 for each panel, lane by lane as the products are added
             up; in the last panel, if it is not whole, every second is used
    starts   int32, -zero * the sum of the codes of each unit; in a whole panel with an `order`, 16, lane by lane as the
             products are added up, from place / 16 on
    sums     the sum of the codes of each group times the scale, or where `whole`, the sum itself as int16
    """
    span, group, unit = rounding.span, rounding.group, rounding.unit
    has_sums, has_starts = rounding.sums, rounding.zero != 0
    sum_dtype = np.int16 if rounding.whole else np.float32
    round_span, ordered = _span_rounder(rounding), bool(rounding.order)
    arrange, scale_room = _arranger(rounding), 2 if _has_scale_lanes(rounding) else 1

    @inline
    def allocate(columns: Any, n: Any) -> Any:
        quants = np.empty((columns, n + CACHE_LINE), np.int8)
        scales = np.empty(columns * (n // span) * scale_room + CACHE_LINE, np.float32)
        starts = np.empty(columns * (n // unit) + CACHE_LINE if has_starts else 0, np.int32)
        sums = np.empty(columns * (n // group) + CACHE_LINE if has_sums else 0, sum_dtype)
        return quants, scales, starts, sums

    @inline
    def addresses(arrays: Any) -> Any:
        quants, scales, starts, sums = arrays
        codes, first = cache_line(address(quants, np.int8)), cache_line(address(starts, np.int32))
        return codes, cache_line(address(scales, np.float32)), first, cache_line(address(sums, sum_dtype))

    @inline
    def prepare(column: Any, x: Any, arrays: Any) -> None:
        columns, n = arrays[0].shape[0], arrays[0].shape[1] - CACHE_LINE
        values, activations, source = address(x, np.float32), addresses(arrays), min(column, x.shape[0] - 1) * n
        for first in range(0, n, STRETCH):
            width = min(STRETCH, n - first)
            place = place_of(first, column, columns, width)
            is_ordered = ordered and width == STRETCH
            for i in range(0, width, span):
                round_span(values, source + first + i, place, i, is_ordered, activations)
            if is_ordered:
                arrange(place, activations)

    return Activations(allocate, addresses, prepare)


def _span_rounder(rounding: Rounding) -> Callable[..., None]:
    """The `inline` function that quantizes one span, `x` from `source` on, into the arrays of `rounded`: activation `inner`
    and following of the panel that begins at `panel`."""
    span, group, zero = rounding.span, rounding.group, rounding.zero
    has_sums, has_starts, in_quads = rounding.sums, zero != 0, rounding.unit == QUAD
    minus_zero, whole, has_lanes = np.int32(-zero), rounding.whole, _has_scale_lanes(rounding)
    lanes = _lanes_of_parts(rounding.order)

    @inline_once
    def round_span(x: Any, source: Any, panel: Any, inner: Any, is_ordered: Any, activations: Any) -> None:
        quants, scales, starts, sums = activations
        at = panel + inner
        top = splat(_ZERO, LANES)
        for i in range(0, span, LANES):
            top = maximum(absolute(load(x, source + i, LANES)), top)
        largest = max_lanes(top)
        scale, inverse = _ZERO, _ZERO
        if largest > _ZERO:
            inverse = _LARGEST_CODE / largest
            scale = half_to_float(float_to_half(largest / _LARGEST_CODE)) if span == PART else np.float32(1) / inverse
        if has_lanes and is_ordered:
            store(scales, panel // 16 + lanes[2 * (inner // PART)], splat(scale, 1))
            store(scales, panel // 16 + lanes[2 * (inner // PART) + 1], splat(scale, 1))
        else:
            store(scales, at // PART * 2 if has_lanes else at // span, splat(scale, 1))
        for first in range(0, span, group):
            total = _NOTHING
            for i in range(first, first + group, 16):
                codes = convert(rint(load(x, source + i, 16) * inverse), np.int32)
                store(quants, at + i, convert(codes, np.int8))
                if has_sums or (has_starts and not in_quads):
                    total += sum_lanes(codes)
            if has_sums:
                store(sums, (at + first) // group, splat(np.int16(total) if whole else np.float32(total) * scale, 1))
            if has_starts and not in_quads:
                store(starts, (at + first) // group, splat(np.int32(total * minus_zero), 1))
        if has_starts and in_quads and not is_ordered:
            for i in range(0, span, PART):
                quads = dot_quads(splat(_NOTHING, 8), splat(_ONES, PART), load(quants, at + i, PART))
                store(starts, (at + i) // QUAD, quads * minus_zero)

    return round_span


def _has_scale_lanes(rounding: Rounding) -> bool:
    """Whether the scales of a panel are stored lane by lane."""
    return bool(rounding.order) and rounding.span == PART


def _lanes_of_parts(order: tuple[int, ...]) -> NDArray[np.intp]:
    """The two lanes of each 32 activations, part after part."""
    parts = [four * QUAD // PART for four in order[: STRETCH // 16]]
    return np.argsort(np.array(parts or range(16)), kind="stable")


def _arranger(rounding: Rounding) -> Callable[..., None]:
    """The `inline` function that puts the codes of a whole panel into the `order`, and sets their starts."""
    minus_zero, has_starts = np.int32(-rounding.zero), rounding.zero != 0
    ordered = shuffle(*(rounding.order or range(STRETCH // QUAD)))

    @inline
    def arrange(panel: Any, activations: Any) -> None:
        quants, _, starts, _ = activations
        words = reinterpret(load(quants, panel, STRETCH), np.uint32)
        store(quants, panel, reinterpret(ordered(words, words), np.int8))
        if has_starts:
            ones, quads = splat(_ONES, 64), splat(_NOTHING, 16)
            for place in range(panel, panel + STRETCH, 64):
                quads = dot_quads(quads, ones, load(quants, place, 64))
            store(starts, panel // 16, quads * minus_zero)

    return arrange
