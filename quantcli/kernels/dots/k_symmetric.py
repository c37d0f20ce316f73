"""How products read Q3_K and Q6_K: sub-blocks of 16 with a signed scale, an integer times the block's.

Codes are unsigned, counted from the middle of their range. Source of the layouts: `ggml-common.h` and
`dequantize_row_q*_K` in `ggml-quants.c`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import numpy as np

from quantcli.kernels.dots import Levels
from quantcli.kernels.dots.pieces import bits_from, bits_to, eight_levels, half_from, leveled, offsets, pair_of_words
from quantcli.kernels.jit import inline
from quantcli.kernels.shorthand import I16, U8, U32, U64
from quantcli.kernels.simd import convert, load, load_scalar, reinterpret, shuffle

_PART: Final = 32
_Q3_HIGH, _Q3_LOW, _Q3_SCALES, _Q3_D = offsets("Q3_K", "hmask", "qs", "scales", "d")
_Q6_LOW, _Q6_HIGH, _Q6_SCALES, _Q6_D = offsets("Q6_K", "ql", "qh", "scales", "d")
_join_eights = shuffle(*range(16))


@inline
def _codes_3(weights: Any, offset: Any, part: Any) -> Any:
    low = load(weights, offset + _Q3_LOW + part // 4 * _PART, _PART)
    high = load(weights, offset + _Q3_HIGH, _PART)
    return bits_from(low, part % 4 * 2, U8(3)) | bits_to(high, part, 2, U8(4))


@inline
def _levels_3(weights: Any, offset: Any) -> Any:
    # 16 scales of six bits: the low four in 8 bytes (8 to 15 in their upper halves), the high two in 4 bytes.
    low = load_scalar(weights, offset + _Q3_SCALES, np.uint64)
    high = load_scalar(weights, offset + _Q3_SCALES + 8, np.uint32)
    two, four = U32(0x03030303), U64(0x0F0F0F0F0F0F0F0F)
    first = (low & four) | pair_of_words(high & two, (high >> U32(2)) & two) << U64(4)
    second = ((low >> U64(4)) & four) | pair_of_words((high >> U32(4)) & two, (high >> U32(6)) & two) << U64(4)
    return _join_eights(eight_levels(first), eight_levels(second)) - I16(32)


@inline
def _codes_6(weights: Any, offset: Any, part: Any) -> Any:
    half, quarter = part // 4, part % 4
    low = load(weights, offset + _Q6_LOW + half * 64 + quarter % 2 * _PART, _PART)
    high = load(weights, offset + _Q6_HIGH + half * _PART, _PART)
    return bits_from(low, quarter // 2 * 4, U8(15)) | bits_to(high, quarter * 2, 4, U8(48))


@inline
def _levels_6(weights: Any, offset: Any) -> Any:
    return convert(reinterpret(load(weights, offset + _Q6_SCALES, 16), np.int8), np.int16)


DOTS: Final = MappingProxyType(
    {
        "Q3_K": leveled(_codes_3, Levels(_levels_3, half_from(_Q3_D)), group=16, zero=4, apart=4),
        "Q6_K": leveled(_codes_6, Levels(_levels_6, half_from(_Q6_D)), group=16, zero=32, apart=4),
    }
)
