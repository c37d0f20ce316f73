"""The scales that rounding with error feedback tries for a group: quantized scales and minimums near those of a float fit.

A family of types has one kind of them: integers times a super-block scale, with or without minimums; one float16 for the
block; or eight-bit floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from quantcli.kernels.blocks.scale_fields import ONE, ScaleFields, as_integer
from quantcli.kernels.half import float_to_half, half_to_float
from quantcli.kernels.jit import inline
from quantcli.kernels.rounding.levels import Levels
from quantcli.kernels.shorthand import F32, Vec
from quantcli.kernels.simd import LANES, convert, load, local, maximum, minimum, rint, select, splat, store

TRIED: Final = 5
"""Candidates that are simulated at once. They share the loads of the feedback, and hide the latency of its sums."""

_HALF: Final = TRIED // 2

_COARSE: Final = 0.06
_FINE: Final = 0.005
"""The distance of two float16 scales, relative to the scale: for types with few levels, and for Q8_0."""

_MANY_LEVELS: Final = 32

_MINIMUM_STEP: Final = F32(0.25)
"""The distance of two float16 minimums, relative to the scale."""


@dataclass(frozen=True)
class CandidateScales:
    """The candidates of a type. All functions are `inline`, on vectors of `LANES` float32, a row in each lane.

    start(scale, minimum, d, dmin)               the quantized scale and minimum nearest to those of a fit
    candidate(scale, minimum, t, c, d, dmin)     `t` scales and `c` minimums further, or `c` scales where there are no
                                                 minimums: (quantized scale, scale, quantized minimum, minimum)
    batches                                      how many batches of `TRIED` candidates there are
    floating                                     whether the quantized scale is the float16 of the block itself
    scaled                                       whether there is a super-block scale d
    """

    start: Callable[..., Any]
    candidate: Callable[..., Any]
    batches: int
    floating: bool = False
    scaled: bool = False


def candidate_scales(fields: ScaleFields, levels: Levels) -> CandidateScales:
    """The candidates of a type with these scale fields and levels."""
    if fields.scales == ONE:
        width = F32(_FINE if len(levels.values) > _MANY_LEVELS else _COARSE)
        return _float_pairs(width) if fields.minimums else _float_scales(width)
    if fields.value is as_integer:
        return _integer_pairs(fields) if fields.minimums else _integer_scales(fields.scales)
    return _table_scales(fields)


@inline
def _over(x: Vec, d: Vec) -> Vec:
    """x / d, and 0 where d is 0."""
    return select(d != F32(0), x / d, splat(F32(0), LANES))


@inline
def _as_half(x: Vec) -> Vec:
    return half_to_float(float_to_half(x))


def _nearest_in(valid: range) -> Callable[..., Any]:
    low, high = F32(valid[0]), F32(valid[-1])

    @inline
    def nearest(index: Vec) -> Vec:
        return minimum(maximum(rint(index), splat(low, LANES)), splat(high, LANES))

    return nearest


def _integer_scales(valid: range) -> CandidateScales:
    nearest = _nearest_in(valid)

    @inline
    def start(scale: Vec, low: Vec, d: Vec, dmin: Vec) -> Any:
        return nearest(_over(scale, d)), splat(F32(0), LANES)

    @inline
    def candidate(scale: Vec, low: Vec, t: Any, c: Any, d: Vec, dmin: Vec) -> Any:
        index = nearest(scale + F32(c))
        return index, index * d, low, low

    return CandidateScales(start, candidate, 1, scaled=True)


def _integer_pairs(fields: ScaleFields) -> CandidateScales:
    nearest, nearest_minimum = _nearest_in(fields.scales), _nearest_in(fields.minimums)

    @inline
    def start(scale: Vec, low: Vec, d: Vec, dmin: Vec) -> Any:
        return nearest(_over(scale, d)), nearest_minimum(_over(low, dmin))

    @inline
    def candidate(scale: Vec, low: Vec, t: Any, c: Any, d: Vec, dmin: Vec) -> Any:
        index, place = nearest(scale + F32(t)), nearest_minimum(low + F32(c))
        return index, index * d, place, place * dmin

    return CandidateScales(start, candidate, TRIED, scaled=True)


def _float_scales(width: Any) -> CandidateScales:
    @inline
    def start(scale: Vec, low: Vec, d: Vec, dmin: Vec) -> Any:
        return scale, splat(F32(0), LANES)

    @inline
    def candidate(scale: Vec, low: Vec, t: Any, c: Any, d: Vec, dmin: Vec) -> Any:
        half = _as_half(scale + scale * (F32(c) * width))
        return half, half, low, low

    return CandidateScales(start, candidate, 1, floating=True)


def _float_pairs(width: Any) -> CandidateScales:
    @inline
    def start(scale: Vec, low: Vec, d: Vec, dmin: Vec) -> Any:
        return scale, low

    @inline
    def candidate(scale: Vec, low: Vec, t: Any, c: Any, d: Vec, dmin: Vec) -> Any:
        half = _as_half(scale + scale * (F32(t) * width))
        offset = _as_half(maximum(low + half * (F32(c) * _MINIMUM_STEP), splat(F32(0), LANES)))
        return half, half, offset, offset

    return CandidateScales(start, candidate, TRIED, floating=True)


def _table_scales(fields: ScaleFields) -> CandidateScales:
    """Scales of eight bits, whose values rise with their bits."""
    nearest, of, first, last = _nearest_in(fields.scales), fields.value, fields.scales[0], fields.scales[-1]

    @inline
    def start(scale: Vec, low: Vec, d: Vec, dmin: Vec) -> Any:
        found = splat(F32(first), LANES)
        for bits in range(first, last):
            found = select(scale * F32(2) > of(bits) + of(bits + 1), splat(F32(bits + 1), LANES), found)
        return found, splat(F32(0), LANES)

    @inline
    def candidate(scale: Vec, low: Vec, t: Any, c: Any, d: Vec, dmin: Vec) -> Any:
        index = nearest(scale + F32(c))
        bits, values = local(LANES, np.int32), local(LANES, np.float32)
        store(bits, 0, convert(index, np.int32))
        for lane in range(LANES):
            values[lane] = of(bits[lane])
        return index, load(values, 0, LANES), low, low

    return CandidateScales(start, candidate, 1)
