"""IQ1, IQ2, IQ3: super-blocks of 256 weights, vector-quantized in groups of eight or four to the points of a codebook.

The codebooks are in `codebooks`. `lattice_magnitude` quantizes to IQ2 and IQ3, `lattice_ternary` to IQ1. This module has
the readers of all seven types. They look up codebook points and apply signs. Point tables include the zero point, so that
all codes are unsigned.

Source of the layouts: `ggml-common.h` and `dequantize_row_iq*` in `ggml-quants.c`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.blocks import Codec, lattice_magnitude, lattice_ternary
from quantcli.kernels.blocks.codebooks import codebook
from quantcli.kernels.blocks.lattice_wide import (
    points_at,
    points_by,
    stored_points,
    wide_magnitudes,
    wide_ternary,
    words_at,
    words_of_sevens,
)
from quantcli.kernels.blocks.packed_fields import byte_lanes, half_at, offsets, pair_of_words
from quantcli.kernels.blocks.reader import PackedReader
from quantcli.kernels.half import half_to_float
from quantcli.kernels.jit import inline
from quantcli.kernels.shorthand import F32, I8, U8, U16, U32
from quantcli.kernels.simd import bits_mask, convert, load, load_scalar, reinterpret, select, shuffle, splat

_D = 0
"""Every block but IQ1_M's begins with its scale."""

EVEN_SIGNS: Final = np.array([index | (index.bit_count() % 2) << 7 for index in range(128)], np.uint8)
"""Eight sign bits from seven: the eighth makes the parity of minus signs even."""


@inline
def _eight(points: Any, index: Any) -> Any:
    """The point of eight weights with this index, as the bytes of a uint64."""
    return load_scalar(points, np.intp(index) * 8, np.uint64)


@inline
def _twice_four(points: Any, first: Any, second: Any) -> Any:
    """Two points of four weights, as the bytes of a uint64."""
    low = load_scalar(points, np.intp(first) * 4, np.uint32)
    return pair_of_words(low, load_scalar(points, np.intp(second) * 4, np.uint32))


@inline
def _signed(codes: Any, bits: Any, zero: Any) -> Any:
    """Codes, negated about the zero point `zero` where the bit of the uint32 is set."""
    return select(bits_mask(U32(bits)), splat(U8(2 * zero), 32) - codes, codes)


@inline
def _four_signs(first: Any, second: Any, third: Any, fourth: Any) -> Any:
    """32 sign bits from four times seven."""
    low = U32(EVEN_SIGNS[first]) | U32(EVEN_SIGNS[second]) << U32(8)
    return low | U32(EVEN_SIGNS[third]) << U32(16) | U32(EVEN_SIGNS[fourth]) << U32(24)


@inline
def _signs_of_word(word: Any) -> Any:
    """32 sign bits from the low 28 bits of a uint32."""
    seven = U32(127)
    return _four_signs(word & seven, (word >> U32(7)) & seven, (word >> U32(14)) & seven, (word >> U32(21)) & seven)


@inline
def _byte(weights: Any, place: Any) -> Any:
    return np.intp(load_scalar(weights, place, np.uint8))


@inline
def _word(weights: Any, place: Any) -> Any:
    return np.intp(load_scalar(weights, place, np.uint16))


_second_words = shuffle(*range(1, 16, 2))
_alternate_eights = shuffle(*(lane + side for lane in range(8) for side in (0, 8)))
_alternate_fours = shuffle(*(lane + side for lane in range(4) for side in (0, 4)))
_four_times_each = shuffle(*(lane // 4 for lane in range(16)))


@inline
def _floats(levels: Any) -> Any:
    return convert(levels, np.float32)


@inline
def _odd(levels: Any) -> Any:
    """1, 3, 5 ... as float32, for 0, 1, 2 ..."""
    return _floats(levels) * F32(2) + F32(1)


def _points(name: str, zero: int, unit: int = 1) -> NDArray[np.uint8]:
    """The points of a codebook times `unit`, plus the zero point `zero`."""
    return (codebook(name).values * I8(unit) + I8(zero)).view(np.uint8)


# IQ2: three magnitudes; an index for each eight weights

_ZERO_2: Final = 64
_IQ2_XXS: Final = _points("IQ2_XXS", _ZERO_2)
_IQ2_XS: Final = _points("IQ2_XS", _ZERO_2)
_IQ2_S: Final = _points("IQ2_S", _ZERO_2)
(_QS_2XXS,) = offsets("IQ2_XXS", "qs")
_QS_2XS, _SCALES_2XS = offsets("IQ2_XS", "qs", "scales")
_QS_2S, _QH_2S, _SCALES_2S = offsets("IQ2_S", "qs", "qh", "scales")


@inline
def _codes_2xxs(weights: Any, offset: Any, part: Any) -> Any:
    at = offset + _QS_2XXS + 8 * part
    a, b = _eight(_IQ2_XXS, _byte(weights, at)), _eight(_IQ2_XXS, _byte(weights, at + 1))
    c, d = _eight(_IQ2_XXS, _byte(weights, at + 2)), _eight(_IQ2_XXS, _byte(weights, at + 3))
    return _signed(byte_lanes(a, b, c, d), _signs_of_word(load_scalar(weights, at + 4, np.uint32)), _ZERO_2)


@inline
def _scales_2xxs(weights: Any, offset: Any) -> Any:
    words = reinterpret(load(weights, offset + _QS_2XXS, 64), np.uint32)
    return (_floats(_second_words(words, words) >> U32(28)) + F32(0.5)) * (half_at(weights, offset + _D) * F32(0.25))


@inline
def _codes_2xs(weights: Any, offset: Any, part: Any) -> Any:
    at = offset + _QS_2XS + 8 * part
    i, j, k, m = _word(weights, at), _word(weights, at + 2), _word(weights, at + 4), _word(weights, at + 6)
    a, b, c, d = _eight(_IQ2_XS, i & 511), _eight(_IQ2_XS, j & 511), _eight(_IQ2_XS, k & 511), _eight(_IQ2_XS, m & 511)
    return _signed(byte_lanes(a, b, c, d), _four_signs(i >> 9, j >> 9, k >> 9, m >> 9), _ZERO_2)


def _half_part_scales(place: int) -> Any:
    """Scales of IQ2_XS and IQ2_S: a nibble for each 16 weights."""

    @inline
    def scales(weights: Any, offset: Any) -> Any:
        levels = load(weights, offset + place, 8)
        each = _alternate_eights(levels & U8(15), levels >> U8(4))
        return (_floats(each) + F32(0.5)) * (half_at(weights, offset + _D) * F32(0.25))

    return scales


@inline
def _codes_2s(weights: Any, offset: Any, part: Any) -> Any:
    at, high = offset + _QS_2S + 4 * part, _byte(weights, offset + _QH_2S + part)
    a = _eight(_IQ2_S, _byte(weights, at) | (high << 8) & 0x300)
    b = _eight(_IQ2_S, _byte(weights, at + 1) | (high << 6) & 0x300)
    c = _eight(_IQ2_S, _byte(weights, at + 2) | (high << 4) & 0x300)
    d = _eight(_IQ2_S, _byte(weights, at + 3) | (high << 2) & 0x300)
    return _signed(byte_lanes(a, b, c, d), load_scalar(weights, at + 32, np.uint32), _ZERO_2)


# IQ3: eight magnitudes; an index for each four weights

_ZERO_3XXS: Final = 64
_ZERO_3S: Final = 16
_IQ3_XXS: Final = _points("IQ3_XXS", _ZERO_3XXS)
_IQ3_S: Final = _points("IQ3_S", _ZERO_3S)
(_QS_3XXS,) = offsets("IQ3_XXS", "qs")
_WORDS_3XXS: Final = _QS_3XXS + 64
_QS_3S, _QH_3S, _SIGNS_3S, _SCALES_3S = offsets("IQ3_S", "qs", "qh", "signs", "scales")


@inline
def _codes_3xxs(weights: Any, offset: Any, part: Any) -> Any:
    at = offset + _QS_3XXS + 8 * part
    a = _twice_four(_IQ3_XXS, _byte(weights, at), _byte(weights, at + 1))
    b = _twice_four(_IQ3_XXS, _byte(weights, at + 2), _byte(weights, at + 3))
    c = _twice_four(_IQ3_XXS, _byte(weights, at + 4), _byte(weights, at + 5))
    d = _twice_four(_IQ3_XXS, _byte(weights, at + 6), _byte(weights, at + 7))
    signs = _signs_of_word(load_scalar(weights, offset + _WORDS_3XXS + 4 * part, np.uint32))
    return _signed(byte_lanes(a, b, c, d), signs, _ZERO_3XXS)


@inline
def _scales_3xxs(weights: Any, offset: Any) -> Any:
    words = reinterpret(load(weights, offset + _WORDS_3XXS, 32), np.uint32)
    return (_floats(words >> U32(28)) + F32(0.5)) * (half_at(weights, offset + _D) * F32(0.5))


@inline
def _index_3s(weights: Any, at: Any, high: Any, number: Any) -> Any:
    """Index `number` of a part: eight bits from its byte, the ninth from `high`."""
    return _byte(weights, at + number) | (high >> number & 1) << 8


@inline
def _codes_3s(weights: Any, offset: Any, part: Any) -> Any:
    at, high = offset + _QS_3S + 8 * part, _byte(weights, offset + _QH_3S + part)
    a = _twice_four(_IQ3_S, _index_3s(weights, at, high, 0), _index_3s(weights, at, high, 1))
    b = _twice_four(_IQ3_S, _index_3s(weights, at, high, 2), _index_3s(weights, at, high, 3))
    c = _twice_four(_IQ3_S, _index_3s(weights, at, high, 4), _index_3s(weights, at, high, 5))
    d = _twice_four(_IQ3_S, _index_3s(weights, at, high, 6), _index_3s(weights, at, high, 7))
    return _signed(byte_lanes(a, b, c, d), load_scalar(weights, offset + _SIGNS_3S + 4 * part, np.uint32), _ZERO_3S)


@inline
def _scales_3s(weights: Any, offset: Any) -> Any:
    levels = load(weights, offset + _SCALES_3S, 4)
    each = _alternate_fours(levels & U8(15), levels >> U8(4))
    return _odd(each) * half_at(weights, offset + _D)


# IQ1: -1, 0 and 1, all shifted by an eighth up or down; codes are eighths, so that the shift is a code of 1 or -1

_ZERO_1: Final = 16
_EIGHTHS: Final = _points("IQ1_S", _ZERO_1, 8)
_QS_1S, _QH_1S = offsets("IQ1_S", "qs", "qh")
_QS_1M, _QH_1M, _SCALES_1M = offsets("IQ1_M", "qs", "qh", "scales")
_PLACES_1M: Final = np.resize(np.arange(0, 12, 3, dtype=np.uint16), 16)
_SHIFTS_1M: Final = np.where(np.arange(16)[:, None] >> np.arange(32) // 8 & 1, 255, 1).astype(np.uint8).reshape(-1)
"""For four bits, eight bytes each: -1 where the bit is set, else 1."""


@inline
def _codes_1s(weights: Any, offset: Any, part: Any) -> Any:
    at, high = offset + _QS_1S + 4 * part, _word(weights, offset + _QH_1S + 2 * part)
    a = _eight(_EIGHTHS, _byte(weights, at) | (high << 8) & 0x700)
    b = _eight(_EIGHTHS, _byte(weights, at + 1) | (high << 5) & 0x700)
    c = _eight(_EIGHTHS, _byte(weights, at + 2) | (high << 2) & 0x700)
    d = _eight(_EIGHTHS, _byte(weights, at + 3) | (high >> 1) & 0x700)
    return byte_lanes(a, b, c, d) + U8(1 - 2 * (high >> 15))


@inline
def _scales_1s(weights: Any, offset: Any) -> Any:
    words = reinterpret(load(weights, offset + _QH_1S, 16), np.uint16)
    return _odd((words >> U16(12)) & U16(7)) * (half_at(weights, offset + _D) * F32(0.125))


@inline
def _codes_1m(weights: Any, offset: Any, part: Any) -> Any:
    at, high = offset + _QS_1M + 4 * part, _word(weights, offset + _QH_1M + 2 * part)
    a = _eight(_EIGHTHS, _byte(weights, at) | (high << 8) & 0x700)
    b = _eight(_EIGHTHS, _byte(weights, at + 1) | (high << 4) & 0x700)
    c = _eight(_EIGHTHS, _byte(weights, at + 2) | high & 0x700)
    d = _eight(_EIGHTHS, _byte(weights, at + 3) | (high >> 4) & 0x700)
    # The multiplication gathers every fourth bit into a nibble. Expanding each bit to eight bytes separately took half as
    # long again for a whole model.
    fours = (high >> 3 & 0x1111) * 0x249 >> 9 & 15
    return byte_lanes(a, b, c, d) + load(_SHIFTS_1M, 32 * fours, 32)


@inline
def _scales_1m(weights: Any, offset: Any) -> Any:
    # Above four scales of three bits, each word has four bits of d.
    bits = 0
    for quarter in range(4):
        bits |= (_word(weights, offset + _SCALES_1M + 2 * quarter) >> 12) << (4 * quarter)
    words = reinterpret(load(weights, offset + _SCALES_1M, 8), np.uint16)
    levels = (_four_times_each(words, words) >> load(_PLACES_1M, 0, 16)) & U16(7)
    return _odd(levels) * (half_to_float(np.uint16(bits)) * F32(0.125))


# Whole super-blocks

@inline
def _words_2xxs(weights: Any, offset: Any) -> Any:
    words = reinterpret(load(weights, offset + _QS_2XXS, 64), np.uint32)
    return _second_words(words, words)


@inline
def _words_3xxs(weights: Any, offset: Any) -> Any:
    return reinterpret(load(weights, offset + _WORDS_3XXS, 32), np.uint32)


@inline
def _indices_3s(weights: Any, offset: Any) -> Any:
    low = convert(load(weights, offset + _QS_3S, 64), np.uint16)
    ninth = bits_mask(load_scalar(weights, offset + _QH_3S, np.uint64))
    return low | select(ninth, splat(U16(256), 64), splat(U16(0), 64))


@inline
def _index_1s(weights: Any, offset: Any, i: Any) -> Any:
    high = _word(weights, offset + _QH_1S + i // 4 * 2)
    return _byte(weights, offset + _QS_1S + i) | (high >> (i % 4 * 3) & 7) << 8


@inline
def _shifts_1s(weights: Any, offset: Any) -> Any:
    words = reinterpret(load(weights, offset + _QH_1S, 16), np.uint16)
    return splat(U16(1), 8) - ((words >> U16(14)) & U16(2))


_WIDE_1S: Final = wide_ternary(_ZERO_1, points_by(_EIGHTHS, _index_1s), _shifts_1s)
_WIDE_2XXS: Final = wide_magnitudes(_ZERO_2, points_at(_IQ2_XXS, _QS_2XXS, 4), words_of_sevens(_words_2xxs))
_WIDE_3XXS: Final = wide_magnitudes(_ZERO_3XXS, points_at(_IQ3_XXS, _QS_3XXS), words_of_sevens(_words_3xxs))
_WIDE_3S: Final = wide_magnitudes(_ZERO_3S, stored_points(_IQ3_S, _indices_3s), words_at(_SIGNS_3S))

_READERS: Final = {
    "IQ2_XXS": PackedReader(_codes_2xxs, _scales_2xxs, group=32, zero=_ZERO_2, wide=_WIDE_2XXS),
    "IQ2_XS": PackedReader(_codes_2xs, _half_part_scales(_SCALES_2XS), group=16, zero=_ZERO_2),
    "IQ2_S": PackedReader(_codes_2s, _half_part_scales(_SCALES_2S), group=16, zero=_ZERO_2),
    "IQ3_XXS": PackedReader(_codes_3xxs, _scales_3xxs, group=32, zero=_ZERO_3XXS, wide=_WIDE_3XXS),
    "IQ3_S": PackedReader(_codes_3s, _scales_3s, group=32, zero=_ZERO_3S, wide=_WIDE_3S),
    "IQ1_S": PackedReader(_codes_1s, _scales_1s, group=32, zero=_ZERO_1, wide=_WIDE_1S),
    "IQ1_M": PackedReader(_codes_1m, _scales_1m, group=16, zero=_ZERO_1),
}

_WEIGHTED: Final = lattice_magnitude.QUANTIZE_WEIGHTED | lattice_ternary.QUANTIZE_WEIGHTED

CODECS: Final = MappingProxyType(
    {name: Codec(lattice_magnitude.QUANTIZE.get(name), _WEIGHTED[name], reader) for name, reader in _READERS.items()}
)
