"""Readers and writers: the one description of each packed block layout.

`blocks.dequantize`, the matrix products, and rounding under fixed scales are all derived from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from quantcli.kernels.jit import inline
from quantcli.kernels.simd import convert

PART: Final = 32
"""Codes unpacked by one call of a reader."""


MAX_GROUPS: Final = 16
"""The most groups (sub-blocks) in a block."""


@dataclass(frozen=True, slots=True)
class PlainReader:
    """Reader of a plain (floating-point) type: `inline` functions on the bytes of a matrix.

    widen(weights, offset)       the `simd.LANES` weights from byte `offset` on, cast to a float32 vector
    widen_one(weights, offset)   the weight at byte `offset`, cast to float32
    """

    widen: Callable[..., Any]
    widen_one: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class IntegerScales:
    """Quantized scales and minimums of sub-blocks: integers times the super-block's scales (d and dmin in K-quants).

    `inline` functions:

    quantized_scales(weights, offset)    the quantized scales, an int16 lane per group (sub-block)
    scale(weights, offset)               the super-block's scale of scales (d), float32
    quantized_minimums(weights, offset)  the quantized minimums; None where there are no minimums
    minimum_scale(weights, offset)       the super-block's scale of minimums (dmin), float32

    Integer dot products of four codes, times a quantized scale, accumulate over a whole block within an int32.
    """

    quantized_scales: Callable[..., Any]
    scale: Callable[..., Any]
    quantized_minimums: Callable[..., Any] | None = None
    minimum_scale: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class WideCodes:
    """The codes of 256 weights at once, a super-block's or eight small blocks', for registers of 64 bytes.

    codes(weights, offset)   an `inline` function: four vectors of 64 uint8, at most 255
    zero                     the code that stands for 0
    order                    64 numbers: of all the codes in the vectors, the p-th four are those of the weights from
                             4 * order[p] on

    Codes of the same place in the four vectors belong to the same group: their products are added up before they are
    scaled, and a register of 16 sums of four products each has the sums of all groups.
    """

    codes: Callable[..., Any]
    zero: int
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedReader:
    """Reader of a packed type: `inline` functions on the bytes of a matrix, given the byte `offset` of a block.

    codes(weights, offset, part)   the codes of weights 32 * part to 32 * part + 31 of the block: a vector of 32 uint8, at
                                   most 127, or of int8 where `signed`
    scales(weights, offset)        a float32 lane per group of `group` weights
    minimums(weights, offset)      likewise; None where there are none
    scale_half                     byte position of the scale in the block, where it has one scale and that is a float16
    wide                           the codes of 256 weights at once
    integers                       the quantized scales, where sub-block scales are integers and codes are unsigned

    weight = scales[g] * (code - zero) - minimums[g]. `group` is 16 or 32.
    """

    codes: Callable[..., Any]
    scales: Callable[..., Any]
    group: int
    zero: int = 0
    minimums: Callable[..., Any] | None = None
    signed: bool = False
    integers: IntegerScales | None = None
    wide: WideCodes | None = None
    scale_half: int | None = None


@dataclass(frozen=True, slots=True)
class CodeWriter:
    """Writer of the codes of a packed type: the inverse of `PackedReader.codes`.

    store(packed, offset, codes)   an `inline` function: packs all codes of the block at byte `offset`, keeping its scales.
                                   codes uint8 (block length,), bit for bit what the reader returns
    codes                          the valid codes, as the reader returns them: a range where the quantization is uniform,
                                   otherwise a tuple. Of two equally near codes the earlier in the tuple is taken
    """

    store: Callable[..., None]
    codes: range | tuple[int, ...]


def with_integer_scales(
    codes: Callable[..., Any], integers: IntegerScales, group: int, zero: int = 0, wide: WideCodes | None = None
) -> PackedReader:
    """The reader of a type whose sub-block scales and minimums are quantized, with float scales for the super-block."""

    def floats(quantized: Any, scale: Any) -> Callable[..., Any]:
        @inline
        def scales(weights: Any, offset: Any) -> Any:
            return convert(quantized(weights, offset), np.float32) * scale(weights, offset)

        return scales

    scales = floats(integers.quantized_scales, integers.scale)
    quantized_minimums = integers.quantized_minimums
    minimums = None if quantized_minimums is None else floats(quantized_minimums, integers.minimum_scale)
    return PackedReader(codes, scales, group, zero, minimums, integers=integers, wide=wide)
