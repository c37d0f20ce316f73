"""Lookups in packed strings, such as the tokens and merges of a vocabulary, without decoding all of them.

A large vocabulary has hundreds of thousands of strings. A dict of them takes a second to make; a short text needs a few
hundred.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.formats.gguf.arrays import LENGTH, PackedStrings
from quantcli.formats.gguf.spec import encode_string

_WORD: Final = 8
_FACTORS: Final = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
_BUCKET_BITS: Final = 16
_MOST_MISSES: Final = 1 << 20
"""How many strings are remembered that are not there."""


def positions(strings: PackedStrings, *, last: bool = False) -> Callable[[str], int | None]:
    """A function from a string to its index in `strings`; None where it is not there.

    Of duplicates it is the first, or with `last` the last.
    """
    return _Positions(strings, last).__getitem__


class _Positions(dict[str, int | None]):
    """The strings found so far. A string that is missing is looked for in its bucket: all strings with its hash."""

    def __init__(self, strings: PackedStrings, last: bool) -> None:
        self._strings = strings
        self._last = last
        buckets = _buckets(strings)
        # NumPy sorts integers of 16 bits by radix, in linear time. A memoryview's elements are Python integers.
        order = np.argsort(buckets, kind="stable")
        self._order = order.data
        self._bounds = np.searchsorted(buckets[order], np.arange((1 << _BUCKET_BITS) + 1)).data
        self._read = bytearray(1 << _BUCKET_BITS)
        self._misses = 0

    def __missing__(self, text: str) -> int | None:
        bucket = _bucket(encode_string(text))
        if not self._read[bucket]:
            self._read[bucket] = True
            members = self._order[self._bounds[bucket] : self._bounds[bucket + 1]].tolist()
            for index in members if self._last else reversed(members):
                self[self._strings[index]] = index
            if text in self:
                return self[text]
        if self._misses < _MOST_MISSES:
            self._misses += 1
            self[text] = None
        return None


def _buckets(strings: PackedStrings) -> NDArray[np.uint16]:
    """A hash of the first and the last eight bytes of each string. Where it is shorter, zeros of its length precede it."""
    bounds = _bounds(strings)
    words = np.ndarray(max(0, len(strings.data) - _WORD + 1), "<u8", strings.data, strides=(1,))
    ends = bounds[1:] - _WORD
    first, second = (np.uint64(factor) for factor in _FACTORS)
    mixed: NDArray[np.uint64] = (words[np.minimum(bounds[:-1] + LENGTH.size, ends)] * first ^ words[ends]) * second
    return (mixed >> np.uint64(64 - _BUCKET_BITS)).astype(np.uint16)


def _bucket(text: bytes) -> int:
    """As `_buckets` for one string."""
    head, tail = int.from_bytes(text[:_WORD], "little"), int.from_bytes(text[-_WORD:], "little")
    if len(text) < _WORD:
        head = tail = head << 8 * (_WORD - len(text))
    mixed = (head * _FACTORS[0] ^ tail) * _FACTORS[1]
    return (mixed & (1 << 64) - 1) >> (64 - _BUCKET_BITS)


def lengths(strings: PackedStrings) -> NDArray[np.int64]:
    """The length of each string in bytes."""
    return np.diff(_bounds(strings)) - LENGTH.size


def with_inner(strings: PackedStrings, text: str) -> list[str]:
    """The strings that contain `text` not only at their start, perhaps with a few others."""
    data, bounds, sought = np.frombuffer(strings.data, np.uint8), _bounds(strings), encode_string(text)
    found = np.ones(max(0, len(data) - len(sought) + 1), bool)
    for offset, byte in enumerate(sought):
        found &= data[offset : offset + len(found)] == byte
    begins = bounds[:-1] + LENGTH.size
    found[begins[begins < len(found)]] = False
    owners = np.unique(np.searchsorted(bounds, np.flatnonzero(found), "right") - 1)
    return [strings[index] for index in owners.tolist()]


def _bounds(strings: PackedStrings) -> NDArray[np.int64]:
    return np.frombuffer(strings.bounds, np.uint64).astype(np.int64)
