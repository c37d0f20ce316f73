"""How products read Q2_K, Q4_K and Q5_K: sub-blocks of 16 or 32 with a scale and a minimum, integers times the block's two.

Source of the layouts: `ggml-common.h` and `dequantize_row_q*_K` in `ggml-quants.c`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import numpy as np

from quantcli.kernels.dots import Levels
from quantcli.kernels.dots.pieces import bits_from, bits_to, eight_levels, half_from, leveled, offsets, pair_of_words
from quantcli.kernels.jit import inline
from quantcli.kernels.shorthand import U8, U32
from quantcli.kernels.simd import convert, load, load_scalar

_PART: Final = 32
_Q2_SCALES, _Q2_LEVELS, _Q2_D, _Q2_MIN = offsets("Q2_K", "scales", "qs", "d", "dmin")
_Q4_D, _Q4_MIN, _Q4_SCALES, _Q4_LEVELS = offsets("Q4_K", "d", "dmin", "scales", "qs")
_Q5_HIGH, _Q5_LEVELS = offsets("Q5_K", "qh", "qs")


@inline
def _codes_2(weights: Any, offset: Any, part: Any) -> Any:
    levels = load(weights, offset + _Q2_LEVELS + part // 4 * _PART, _PART)
    return bits_from(levels, part % 4 * 2, U8(3))


@inline
def _levels_2(weights: Any, offset: Any) -> Any:
    return convert(load(weights, offset + _Q2_SCALES, 16) & U8(15), np.int16)


@inline
def _lows_2(weights: Any, offset: Any) -> Any:
    return convert(load(weights, offset + _Q2_SCALES, 16) >> U8(4), np.int16)


@inline
def _codes_4(weights: Any, offset: Any, part: Any) -> Any:
    return bits_from(load(weights, offset + _Q4_LEVELS + part // 2 * _PART, _PART), part % 2 * 4, U8(15))


@inline
def _codes_5(weights: Any, offset: Any, part: Any) -> Any:
    low = bits_from(load(weights, offset + _Q5_LEVELS + part // 2 * _PART, _PART), part % 2 * 4, U8(15))
    return low | bits_to(load(weights, offset + _Q5_HIGH, _PART), part, 4, U8(16))


@inline
def _sixes(whole: Any, split: Any, place: Any) -> Any:
    """Eight integers of six bits: four in the bytes of `whole`, four from its high bits and half the bytes of `split`."""
    first = whole & U32(0x3F3F3F3F)
    second = ((split >> U32(place)) & U32(0x0F0F0F0F)) | ((whole >> U32(2)) & U32(0x30303030))
    return eight_levels(pair_of_words(first, second))


# Twelve bytes hold 8 scales and 8 minimums of six bits: of the first four whole bytes with the high bits of the others.


@inline
def _levels_45(weights: Any, offset: Any) -> Any:
    whole = load_scalar(weights, offset + _Q4_SCALES, np.uint32)
    split = load_scalar(weights, offset + _Q4_SCALES + 8, np.uint32)
    return _sixes(whole, split, 0)


@inline
def _lows_45(weights: Any, offset: Any) -> Any:
    whole = load_scalar(weights, offset + _Q4_SCALES + 4, np.uint32)
    split = load_scalar(weights, offset + _Q4_SCALES + 8, np.uint32)
    return _sixes(whole, split, 4)


_WHOLE_2: Final = Levels(_levels_2, half_from(_Q2_D), _lows_2, half_from(_Q2_MIN))
_WHOLE_45: Final = Levels(_levels_45, half_from(_Q4_D), _lows_45, half_from(_Q4_MIN))

DOTS: Final = MappingProxyType(
    {
        "Q2_K": leveled(_codes_2, _WHOLE_2, group=16, apart=4),
        "Q4_K": leveled(_codes_4, _WHOLE_45, group=32, apart=2),
        "Q5_K": leveled(_codes_5, _WHOLE_45, group=32, apart=2),
    }
)
