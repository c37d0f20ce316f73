"""How the weights of a block are read, and how codes are written back: the one description of each packed layout.

Everything that uses weights is derived from it: `blocks.dequantize`, the matrix products, and rounding under fixed scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from quantcli.kernels.jit import inline
from quantcli.kernels.simd import convert

PART: Final = 32
"""Codes that are read together."""


@dataclass(frozen=True, slots=True)
class PlainReader:
    """How a plain type is read: `inline` functions on the bytes of a matrix.

    widen(weights, offset)       the `simd.LANES` weights from byte `offset` on, as a float32 vector
    widen_one(weights, offset)   the weight at byte `offset`, float32
    """

    widen: Callable[..., Any]
    widen_one: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class IntegerScales:
    """Scales and minimums that are integers times numbers of the block (d and dmin of the K types): `inline` functions.

    levels(weights, offset)     the integers of the scales, an int16 lane per group
    scale(weights, offset)      what they are multiplied by, float32
    lows(weights, offset)       the integers of the minimums; None where there are no minimums
    low_scale(weights, offset)  what they are multiplied by

    Sums of four products with codes, times a level, are summed up for a block within an int32.
    """

    levels: Callable[..., Any]
    scale: Callable[..., Any]
    lows: Callable[..., Any] | None = None
    low_scale: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class PackedReader:
    """How a packed type is read: `inline` functions on the bytes of a matrix, given the byte `offset` of a block.

    codes(weights, offset, part)   the weights 32 * part to 32 * part + 31 of the block as 32 integers: a vector of uint8,
                                   at most 128, or where `signed`, of int8
    scales(weights, offset)        what the codes stand for, a float32 lane per `group` weights of the block
    minimums(weights, offset)      likewise; None where there are none
    scale_half                     where a block has one scale, which is a half as it is stored: its byte
    apart                          part p and part p + `apart` are read together in the least time: a power of two
    integers                       where scales are integers times the block's and codes are unsigned: those

    weight = scales[g] * (code - zero) - minimums[g]. `group` is 16 or 32.
    """

    codes: Callable[..., Any]
    scales: Callable[..., Any]
    group: int
    zero: int = 0
    minimums: Callable[..., Any] | None = None
    signed: bool = False
    integers: IntegerScales | None = None
    apart: int = 1
    scale_half: int | None = None


@dataclass(frozen=True, slots=True)
class CodeWriter:
    """How the codes of a packed type are written: the inverse of `PackedReader.codes`.

    store(packed, offset, codes)   an `inline` function: packs all codes of the block at byte `offset`; scales stay.
                                   codes uint8 (block length,), the bytes of what the reader gives
    codes                          the codes that exist, as the reader gives them: a range where weights are evenly spaced,
                                   otherwise a tuple, in which of two equally near codes the first is taken
    """

    store: Callable[..., None]
    codes: range | tuple[int, ...]


def with_integer_scales(
    codes: Callable[..., Any], integers: IntegerScales, group: int, zero: int = 0, apart: int = 1
) -> PackedReader:
    """The reader of a type whose scales and minimums are integers times those of the block."""

    def floats(levels: Any, scale: Any) -> Callable[..., Any]:
        @inline
        def scales(weights: Any, offset: Any) -> Any:
            return convert(levels(weights, offset), np.float32) * scale(weights, offset)

        return scales

    scales = floats(integers.levels, integers.scale)
    minimums = floats(integers.lows, integers.low_scale) if integers.lows is not None else None
    return PackedReader(codes, scales, group, zero, minimums, integers=integers, apart=apart)
