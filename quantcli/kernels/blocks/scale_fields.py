"""Scale fields: the quantized scales and minimums of a packed block, and where they lie.

Rounding with error feedback chooses them itself: it tries other quantized scales for a sub-block, or another scale for the
super-block, and rounds the codes under each (`kernels.rounding`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantcli.kernels.blocks.packed_fields import half_at
from quantcli.kernels.blocks.reader import IntegerScales
from quantcli.kernels.half import float_to_half
from quantcli.kernels.jit import inline
from quantcli.kernels.simd import convert, store, store_scalar

ONE = range(1, 2)
"""The only quantized scale of a type whose scale is a float16."""

NONE = range(0)
"""The quantized minimums of a type that has no minimums."""


@inline
def as_integer(scale: Any) -> Any:
    """The value of a quantized scale that is an integer."""
    return np.float32(scale)


@dataclass(frozen=True, slots=True)
class ScaleFields:
    """The scale fields of a packed type.

    load(packed, offset, scales, minimums)              an `inline` function: reads those of the block at byte `offset`.
                                                        scales, minimums int32 (block length / group,). Returns (d, dmin)
    store(packed, offset, d, dmin, scales, minimums)    its inverse: writes them, keeping the codes
    group                                               weights that share a scale
    scales                                              the valid quantized scales
    minimums                                            the valid quantized minimums, `NONE` where there are none
    value(scale)                                        an `inline` function: the float32 that a quantized scale stands for

    scale of group g = d * value(scales[g]); minimum of group g = dmin * minimums[g]. d and dmin are float32 and stored as
    float16. d is 1 and not stored in MXFP4 and NVFP4, whose scales are eight-bit floats. dmin is 0 where
    there are no minimums.
    """

    load: Callable[..., Any]
    store: Callable[..., None]
    group: int
    scales: range
    minimums: range = NONE
    value: Callable[..., Any] = as_integer


def float_scale(group: int, at: int, at_minimum: int | None = None) -> ScaleFields:
    """The fields of a type with one float16 scale a block, and perhaps a float16 that is added to its weights."""
    has_minimum, minimum_place = at_minimum is not None, at_minimum or 0

    @inline
    def load_fields(packed: Any, offset: Any, scales: Any, minimums: Any) -> Any:
        scales[0] = minimums[0] = 1
        return half_at(packed, offset + at), -half_at(packed, offset + minimum_place) if has_minimum else np.float32(0)

    @inline
    def store_fields(packed: Any, offset: Any, d: Any, dmin: Any, scales: Any, minimums: Any) -> None:
        store_scalar(packed, offset + at, float_to_half(d))
        if has_minimum:
            store_scalar(packed, offset + minimum_place, float_to_half(-dmin))

    return ScaleFields(load_fields, store_fields, group, ONE, ONE if has_minimum else NONE)


def integer_scales(
    integers: IntegerScales, group: int, scales: range, places: tuple[int, ...], pack: Callable[..., None],
    minimums: range = NONE,
) -> ScaleFields:  # fmt: skip
    """The fields of a type whose quantized scales are integers.

    places                                  the byte offsets of d and, where the type has it, dmin
    pack(packed, offset, scales, minimums)  an `inline` function that writes the quantized scales and minimums
    """
    scales_of, scale, has_minimums = integers.quantized_scales, integers.scale, integers.quantized_minimums is not None
    minimums_of, minimum_scale = integers.quantized_minimums or scales_of, integers.minimum_scale or scale
    at_d, at_dmin = places[0], places[-1]

    @inline
    def load_fields(packed: Any, offset: Any, quantized: Any, quantized_minimums: Any) -> Any:
        store(quantized, 0, convert(scales_of(packed, offset), np.int32))
        if has_minimums:
            store(quantized_minimums, 0, convert(minimums_of(packed, offset), np.int32))
            return scale(packed, offset), minimum_scale(packed, offset)
        return scale(packed, offset), np.float32(0)

    @inline
    def store_fields(
        packed: Any, offset: Any, d: Any, dmin: Any, quantized: Any, quantized_minimums: Any
    ) -> None:
        store_scalar(packed, offset + at_d, float_to_half(d))
        if has_minimums:
            store_scalar(packed, offset + at_dmin, float_to_half(dmin))
        pack(packed, offset, quantized, quantized_minimums)

    return ScaleFields(load_fields, store_fields, group, scales, minimums)
