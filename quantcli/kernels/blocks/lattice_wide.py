"""Codes of a whole super-block of IQ1, IQ2 and IQ3, for the products with few columns on machines with AVX-512.

Indices and signs of all points are unpacked in vectors. Points are loaded one by one and joined in registers: a gather
instruction of AVX-512 takes 14 cycles for eight points on Zen 5, eight loads 4. Where indices are bytes, they are loaded
from the block. Unpacking 32 weights at a time by scalar instructions took half as long again: their number was the bound.

Computed indices are moved out of vector registers (`vpextrw`). Stored on the stack and loaded from there, they took as
long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.blocks.packed_fields import EIGHTHS, order_of_eights, pair_of_words
from quantcli.kernels.blocks.reader import WideCodes
from quantcli.kernels.jit import inline
from quantcli.kernels.shorthand import U8, U16, U32
from quantcli.kernels.simd import (
    bits_mask,
    convert,
    load,
    load_scalar,
    local,
    reinterpret,
    select,
    shuffle,
    splat,
    store,
)

_join_1, _join_2, _join_4 = shuffle(0, 1), shuffle(*range(4)), shuffle(*range(8))
_join_8 = shuffle(*range(16))
_within_halves = shuffle(*(16 * half + 4 * block + eight for half in range(2) for eight in range(4) for block in range(4)))
_ORDER: Final = order_of_eights(EIGHTHS)
_each_four_times = shuffle(*(i // 4 for i in range(32)))
_shifts = shuffle(*(i // 8 * 2 for i in range(64)))
_SEVENS: Final = np.resize(np.arange(0, 28, 7, dtype=np.uint32), 32)

Numbers = Callable[..., Any]


def _eights(points: NDArray[np.uint8], index_of: Numbers) -> Numbers:
    """The `inline` function (source, at) for all codes of a super-block of 32 points of eight weights."""

    @inline
    def two(source: Any, at: Any, i: Any) -> Any:
        first = load_scalar(points, index_of(source, at, i) * 8, np.uint64)
        return _join_1(splat(first, 1), splat(load_scalar(points, index_of(source, at, i + 4) * 8, np.uint64), 1))

    @inline
    def vector(source: Any, at: Any, i: Any) -> Any:
        low = _join_2(two(source, at, i), two(source, at, i + 8))
        high = _join_2(two(source, at, i + 16), two(source, at, i + 24))
        return reinterpret(_join_4(low, high), np.uint8)

    @inline
    def codes(source: Any, at: Any) -> Any:
        return vector(source, at, 0), vector(source, at, 1), vector(source, at, 2), vector(source, at, 3)

    return codes


def _fours(points: NDArray[np.uint8], index_of: Numbers) -> Numbers:
    """The `inline` function (source, at) for all codes of a super-block of 64 points of four weights."""

    @inline
    def one(source: Any, at: Any, i: Any) -> Any:
        return splat(load_scalar(points, index_of(source, at, i) * 4, np.uint32), 1)

    @inline
    def four(source: Any, at: Any, i: Any) -> Any:
        low = _join_1(one(source, at, i), one(source, at, i + 1))
        return _join_2(low, _join_1(one(source, at, i + 8), one(source, at, i + 9)))

    @inline
    def vector(source: Any, at: Any, i: Any) -> Any:
        low = _join_4(four(source, at, i), four(source, at, i + 16))
        high = _join_4(four(source, at, i + 32), four(source, at, i + 48))
        return reinterpret(_join_8(low, high), np.uint8)

    @inline
    def codes(source: Any, at: Any) -> Any:
        return vector(source, at, 0), vector(source, at, 2), vector(source, at, 4), vector(source, at, 6)

    return codes


def points_by(points: NDArray[np.uint8], index_of: Numbers) -> Numbers:
    """The `inline` function (source, at) for codes whose points have the indices `index_of(source, at, i)`."""
    return _eights(points, index_of) if points.shape[1] == 8 else _fours(points, index_of)


@inline
def _stored_index(indices: Any, at: Any, i: Any) -> Any:
    return np.intp(load_scalar(indices, at + i, np.uint16))


def stored_points(points: NDArray[np.uint8], indices_of: Numbers) -> Numbers:
    """The `inline` function (weights, offset) for codes whose points have computed indices, a uint16 lane each."""
    count = 256 // points.shape[1]
    codes_of = points_by(points, _stored_index)

    @inline
    def codes(weights: Any, offset: Any) -> Any:
        indices = local(count, np.uint16)
        store(indices, 0, indices_of(weights, offset))
        return codes_of(indices, 0)

    return codes


def points_at(points: NDArray[np.uint8], place: int, gap: int = 0) -> Numbers:
    """The `inline` function (weights, offset) for codes whose points' indices are bytes from `place` on, with `gap` other
    bytes after each four."""

    @inline
    def index_of(weights: Any, at: Any, i: Any) -> Any:
        return np.intp(load_scalar(weights, at + i + i // 4 * gap, np.uint8))

    codes_of = points_by(points, index_of)

    @inline
    def codes(weights: Any, offset: Any) -> Any:
        return codes_of(weights, offset + place)

    return codes


def wide_magnitudes(zero: int, codes_of: Numbers, signs_of: Numbers) -> WideCodes:
    """Points of magnitudes, and signs.

    codes_of   an `inline` function (weights, offset) for the codes as if all were positive, shifted by `zero`
    signs_of   likewise: a bit for each weight, in 16 lanes of uint16
    """
    twice = U8(2 * zero)

    @inline
    def signed(codes: Any, signs: Any, vector: Any) -> Any:
        low, high = load_scalar(signs, 4 * vector, np.uint32), load_scalar(signs, 16 + 4 * vector, np.uint32)
        return select(bits_mask(pair_of_words(low, high)), splat(twice, 64) - codes, codes)

    @inline
    def codes(weights: Any, offset: Any) -> Any:
        signs, stored = local(32, np.uint8), reinterpret(signs_of(weights, offset), np.uint8)
        # Words of signs, four blocks each, are joined by scalar instructions. LLVM makes of the whole order of bytes four
        # truncations, which took longer.
        store(signs, 0, _within_halves(stored, stored))
        a, b, c, d = codes_of(weights, offset)
        return signed(a, signs, 0), signed(b, signs, 1), signed(c, signs, 2), signed(d, signs, 3)

    return WideCodes(codes, zero, _ORDER)


def words_at(place: int) -> Numbers:
    """The `inline` function for signs that are stored as bits."""

    @inline
    def signs(weights: Any, offset: Any) -> Any:
        return reinterpret(load(weights, offset + place, 32), np.uint16)

    return signs


@inline
def with_parity(sevens: Any) -> Any:
    """32 times eight sign bits from seven: the eighth makes the parity of minus signs even. uint8 lanes, as uint16."""
    words = reinterpret(sevens, np.uint16)
    # Bits that move to the next byte do not reach its lowest bit.
    folded = words ^ (words >> U16(4))
    folded = folded ^ (folded >> U16(2))
    folded = folded ^ (folded >> U16(1))
    return words | ((folded << U16(7)) & U16(0x8080))


def words_of_sevens(load_words: Numbers) -> Numbers:
    """The `inline` function for signs from the low 28 bits of eight uint32: four times seven."""

    @inline
    def signs(weights: Any, offset: Any) -> Any:
        words = load_words(weights, offset)
        sevens = (_each_four_times(words, words) >> load(_SEVENS, 0, 32)) & U32(127)
        return with_parity(convert(sevens, np.uint8))

    return signs


def wide_ternary(zero: int, codes_of: Numbers, shifts_of: Numbers) -> WideCodes:
    """Points of three values, and a shift of each 32 weights up or down.

    codes_of    an `inline` function (weights, offset) for the codes before the shift, shifted by `zero`
    shifts_of   likewise: 1 or -1 for each 32 weights, in eight lanes of uint16
    """

    @inline
    def codes(weights: Any, offset: Any) -> Any:
        a, b, c, d = codes_of(weights, offset)
        shifts = reinterpret(shifts_of(weights, offset), np.uint8)
        spread = _shifts(shifts, shifts)
        return a + spread, b + spread, c + spread, d + spread

    return WideCodes(codes, zero, _ORDER)
