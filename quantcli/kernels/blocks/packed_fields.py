"""Fields of packed blocks shared by the readers and writers of several families: float16 numbers, bits and nibbles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import TYPES
from quantcli.kernels.half import half_to_float
from quantcli.kernels.jit import inline
from quantcli.kernels.simd import convert, load, load_scalar, reinterpret, rotate_right, shuffle, splat, store

_join_sixteens = shuffle(*range(32))
_first_sixteen, _last_sixteen = shuffle(*range(16)), shuffle(*range(16, 32))
_join_words = shuffle(0, 1)
_join_pairs = shuffle(0, 1, 2, 3)
next_word, second_word, last_word = (shuffle(*(i & 12 | (i + step) & 3 for i in range(16))) for step in (1, 2, 3))
"""Of 16 words, the words of each 16 bytes rotated: the next one first, that after it, or the last one."""

join_halves = shuffle(*range(64))
first_sixteens = shuffle(*(16 * lane + i for lane in (0, 2, 4, 6) for i in range(16)))
last_sixteens = shuffle(*(16 * lane + i for lane in (1, 3, 5, 7) for i in range(16)))
"""Of two vectors: of 32 bytes, all; of 64 bytes, the first 16 of every 32, and the last 16."""

EIGHTHS: Final = tuple(4 * block + fourth for fourth in range(4) for block in range(8))
"""The first eight of every 32 weights, then the second eight, and so on: the numbers of 32 times eight weights."""


def order_of_eights(eights: Iterable[int]) -> tuple[int, ...]:
    """The `WideCodes.order` of codes that are in order eight by eight."""
    return tuple(2 * eight + four for eight in eights for four in range(2))


FOURTHS: Final = tuple(
    32 * half + 8 * fourth + 4 * side + (fourth + vector) % 4
    for vector in range(4) for half in range(2) for side in range(2) for fourth in range(4)
)  # fmt: skip
"""The `WideCodes.order` of `fourths`."""

_FOUR_PLACES: Final = np.resize(np.arange(0, 8, 2, dtype=np.uint32), 16)


def offsets(name: str, *fields: str) -> tuple[int, ...]:
    """The byte offsets of fields in a block of a type."""
    return tuple(TYPES[name].offset(field) for field in fields)


@inline
def half_at(weights: Any, place: Any) -> Any:
    """The float16 at byte `place`, cast to float32."""
    return half_to_float(load_scalar(weights, place, np.uint16))


@inline
def bits_from(packed: Any, place: Any, mask: Any) -> Any:
    """(byte >> place) & mask for each of 16 or 32 bytes, `mask` a uint8.

    CPUs shift words, not bytes. With byte shifts in the IR, and parts concatenated that are shifted by different counts,
    this took seven instructions instead of two.
    """
    return reinterpret(reinterpret(packed, np.uint32) >> np.uint32(place), np.uint8) & mask


@inline
def bits_to(packed: Any, place: Any, target: Any, mask: Any) -> Any:
    """Move bit `place` of each of 16 or 32 bytes to bit `target`, then apply `mask`. A single shift: shifting down and up
    again takes longer for bytes."""
    if place >= target:
        return bits_from(packed, place - target, mask)
    return reinterpret(reinterpret(packed, np.uint32) << np.uint32(target - place), np.uint8) & mask


@inline
def nibbles(weights: Any, place: Any) -> Any:
    """The 32 nibbles of 16 bytes, uint8: all low nibbles, then all high ones."""
    pairs = load(weights, place, 16)
    return _join_sixteens(bits_from(pairs, 0, np.uint8(15)), bits_from(pairs, 4, np.uint8(15)))


@inline
def store_nibbles(packed: Any, place: Any, codes: Any) -> None:
    """Write the low four bits of 32 codes, uint8, into 16 bytes: codes j and j + 16 share byte j."""
    store(packed, place, (_first_sixteen(codes, codes) & np.uint8(15)) | (_last_sixteen(codes, codes) << np.uint8(4)))


@inline
def store_fourths(packed: Any, place: Any, codes: Any, first: Any) -> None:
    """Write the low two bits of the 128 codes from `codes[first]` on, uint8, into 32 bytes: codes 32 apart share a byte."""
    mask = np.uint8(3)
    byte = load(codes, first, 32) & mask
    byte = byte | ((load(codes, first + 32, 32) & mask) << np.uint8(2))
    byte = byte | ((load(codes, first + 64, 32) & mask) << np.uint8(4))
    store(packed, place, byte | (load(codes, first + 96, 32) << np.uint8(6)))


@inline
def byte_lanes(a: Any, b: Any, c: Any, d: Any) -> Any:
    """The 32 bytes of four uint64, little-endian, as uint8 lanes: those of `a` first."""
    low = _join_words(splat(np.uint64(a), 1), splat(np.uint64(b), 1))
    high = _join_words(splat(np.uint64(c), 1), splat(np.uint64(d), 1))
    return reinterpret(_join_pairs(low, high), np.uint8)


@inline
def eight_levels(word: Any) -> Any:
    """The eight bytes of a uint64, little-endian, as int16 lanes."""
    return convert(reinterpret(splat(np.uint64(word), 1), np.uint8), np.int16)


@inline
def pair_of_words(low: Any, high: Any) -> Any:
    """Two uint32 as one uint64."""
    return np.uint64(low) | np.uint64(high) << np.uint64(32)


@inline
def sixteens(weights: Any, place: Any, step: Any) -> Any:
    """Four times 16 bytes, `step` bytes apart, as one vector."""
    low = _join_sixteens(load(weights, place, 16), load(weights, place + step, 16))
    high = _join_sixteens(load(weights, place + 2 * step, 16), load(weights, place + 3 * step, 16))
    return join_halves(low, high)


@inline
def lane_fields(words: Any, places: Any, mask: Any) -> Any:
    """The bits of each of 16 words, uint32, from the word's own place on: uint8, `mask` a uint8. `places` is an array."""
    return reinterpret(words >> load(places, 0, 16), np.uint8) & mask


@inline
def moved_bits(words: Any, places: Any, mask: Any) -> Any:
    """The bits of each of 16 words, uint32, moved down by the word's own number of places, or up where it is negative:
    uint8, `mask` a uint8. `places` is an array of uint32, which wrap around."""
    return reinterpret(rotate_right(words, load(places, 0, 16)), np.uint8) & mask


@inline
def fourths(packed: Any) -> Any:
    """All codes of a super-block of two bits each in two fields of 32 bytes, one for each half: four vectors, in the order
    `FOURTHS`. A vector has four codes of each 16: of each 16 bytes, every word at another place."""
    a, mask = reinterpret(packed, np.uint32), np.uint8(3)
    return (
        lane_fields(a, _FOUR_PLACES, mask),
        lane_fields(next_word(a, a), _FOUR_PLACES, mask),
        lane_fields(second_word(a, a), _FOUR_PLACES, mask),
        lane_fields(last_word(a, a), _FOUR_PLACES, mask),
    )


@inline
def same_code(nibble: Any) -> Any:
    """The code of a nibble that is the nibble."""
    return nibble


even_eights = shuffle(*(side + 16 * sixteen + i for sixteen in range(4) for side in (0, 64) for i in range(8)))
odd_eights = shuffle(*(side + 16 * sixteen + i for sixteen in range(4) for side in (0, 64) for i in range(8, 16)))
"""Of two vectors of 64 bytes, the first eight of every 16, alternately from either, and the last eight."""

NIBBLES: Final = order_of_eights(
    4 * (sixteen + side) + 2 * high + odd
    for odd in range(2) for high in range(2) for sixteen in range(4) for side in (0, 4)
)  # fmt: skip
"""The `WideCodes.order` of `wide_nibbles`."""


def wide_nibbles(at: int, step: int, code_of: Callable[..., Any] = same_code) -> Callable[..., Any]:
    """The `WideCodes.codes` of eight blocks of nibbles from byte `at` on, `step` bytes apart. `code_of` is an `inline`
    function from nibbles to codes."""

    @inline
    def codes(weights: Any, offset: Any) -> Any:
        low = np.uint8(15)
        first, second = sixteens(weights, offset + at, step), sixteens(weights, offset + at + 4 * step, step)
        even, odd = even_eights(first, second), odd_eights(first, second)
        return (
            code_of(bits_from(even, 0, low)),
            code_of(bits_from(even, 4, low)),
            code_of(bits_from(odd, 0, low)),
            code_of(bits_from(odd, 4, low)),
        )

    return codes


def half_from(place: int) -> Callable[..., Any]:
    """The reader of the float16 at byte `place` of a block, cast to float32."""

    @inline
    def read(weights: Any, offset: Any) -> Any:
        return half_at(weights, offset + place)

    return read
