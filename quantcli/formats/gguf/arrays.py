"""Metadata arrays in the encoding of a GGUF file, decoded lazily.

A vocabulary has hundreds of thousands of strings, of which inspecting a file shows a few.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Any, Final

from quantcli.formats.gguf.spec import PackedArray, decode_string, encode_string

if TYPE_CHECKING:
    from numpy.typing import NDArray

LENGTH: Final = struct.Struct("<Q")
"""The length in bytes, before each string."""


@dataclass(frozen=True, eq=False)
class PackedNumbers(PackedArray):
    """Numbers of one type. `form` is one of `NUMBER_FORMATS`."""

    data: bytes
    form: str

    def __len__(self) -> int:
        return len(self.data) // struct.calcsize(self.form)

    def elements(self, start: int = 0, stop: int | None = None) -> list[Any]:
        """Numbers as Python values."""
        start, stop, _ = slice(start, stop).indices(len(self))
        several = f"{self.form[0]}{max(0, stop - start)}{self.form[1]}"
        return list(struct.unpack_from(several, self.data, start * struct.calcsize(self.form)))

    @cached_property
    def unpacked(self) -> NDArray[Any]:
        """All numbers, with the dtype of the file."""
        import numpy as np

        return np.frombuffer(self.data, self.form).copy()


@dataclass(frozen=True, eq=False)
class PackedStrings(PackedArray):
    """Strings, each after its length. `bounds` are the offsets in `data` between them, with the start and the end."""

    data: bytes
    bounds: array[int]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> str:
        """One string, decoded. Indices count from the start only."""
        return decode_string(self.data[self.bounds[index] + LENGTH.size : self.bounds[index + 1]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.elements())

    def elements(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Strings, decoded."""
        start, stop, _ = slice(start, stop).indices(len(self))
        data, bounds, skip = self.data, self.bounds[start : max(start, stop) + 1], LENGTH.size
        return [decode_string(data[begin + skip : end]) for begin, end in pairwise(bounds)]

    @cached_property
    def unpacked(self) -> list[str]:
        """All strings."""
        return self.elements()


def pack_strings(strings: Iterable[str]) -> PackedStrings:
    """Strings in the encoding of a file."""
    data, bounds = bytearray(), array("Q", [0])
    for text in strings:  # without a list of millions of small objects
        encoded = encode_string(text)
        data += LENGTH.pack(len(encoded))
        data += encoded
        bounds.append(len(data))
    return PackedStrings(bytes(data), bounds)


def string_bounds(data: memoryview, count: int) -> array[int]:
    """The offset of each of `count` strings in `data`, and the end of the last one.

    If a string exceeds `data`, its offset is the last of the result.
    """
    bounds = array("Q")
    append, length_at, skip, position = bounds.append, LENGTH.unpack_from, LENGTH.size, 0
    try:
        # A minimal loop: it takes most of the time of opening a file with a large vocabulary.
        for _ in repeat(None, count):
            append(position)
            position += skip + length_at(data, position)[0]
        append(position)
    except (struct.error, OverflowError):
        pass  # no room for the next length
    if bounds[-1] > len(data):
        bounds.pop()
    return bounds
