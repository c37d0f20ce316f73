"""The constants of a GGUF header and the typed values of its metadata.

Source: the GGUF specification (`docs/gguf.md` of ggml) and `gguf.h` of llama.cpp.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

MAGIC: Final = b"GGUF"
VERSION: Final = 3
"""The version that is written. Versions 2 and 3 have the same layout, and both are read."""

ALIGNMENT_KEY: Final = "general.alignment"
DEFAULT_ALIGNMENT: Final = 32
"""Tensor data starts at multiples of this, unless `general.alignment` says otherwise."""

MAX_DIMENSIONS: Final = 4
MAX_NAME_LENGTH: Final = 63
"""The most bytes of a tensor name (ggml has 64 with the final zero)."""


class ValueType(IntEnum):
    """The type of a metadata value, by its number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


NUMBER_FORMATS: Final[Mapping[ValueType, str]] = MappingProxyType(
    {
        ValueType.UINT8: "<B",
        ValueType.INT8: "<b",
        ValueType.UINT16: "<H",
        ValueType.INT16: "<h",
        ValueType.UINT32: "<I",
        ValueType.INT32: "<i",
        ValueType.FLOAT32: "<f",
        ValueType.BOOL: "<?",
        ValueType.UINT64: "<Q",
        ValueType.INT64: "<q",
        ValueType.FLOAT64: "<d",
    }
)
"""The encodings of the types of fixed size, in the notation that `struct` and NumPy's dtypes share."""


class PackedArray(ABC):
    """The elements of a metadata array in the encoding of the file, decoded lazily."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def elements(self, start: int = 0, stop: int | None = None) -> list[Any]:
        """Elements `start:stop` as Python values, without decoding the others."""

    @property
    @abstractmethod
    def unpacked(self) -> Any:
        """All elements: strings as a list, numbers as a NumPy array."""


@dataclass(frozen=True, slots=True)
class Field:
    """A metadata value with its exact type.

    content   an int, float, bool or str; for ARRAY a list, NumPy array or `PackedArray` of them
    element   the type of the elements of an ARRAY

    Bytes of a string that are not UTF-8 are lone surrogates (`surrogateescape`), so that a copy has the same bytes.
    """

    type: ValueType
    content: Any
    element: ValueType | None = None

    @property
    def value(self) -> Any:
        """The content, with a `PackedArray` decoded to a list or a NumPy array."""
        return self.content.unpacked if isinstance(self.content, PackedArray) else self.content

    @property
    def count(self) -> int:
        """The number of elements of an array."""
        return len(self.content)

    def elements(self, start: int = 0, stop: int | None = None) -> list[Any]:
        """Elements `start:stop` of an array as Python values, without decoding the others."""
        if isinstance(self.content, PackedArray):
            return self.content.elements(start, stop)
        part = self.content[start:stop]
        return list(part.tolist() if hasattr(part, "tolist") else part)


Metadata = dict[str, Field]
"""Metadata in the order of the file."""


def replace_keys(metadata: Metadata, entries: Mapping[str, Field]) -> None:
    """Set `entries` in `metadata` as `gguf.cpp` does: each at the end, even if the key existed."""
    for key, entry in entries.items():
        metadata.pop(key, None)
        metadata[key] = entry


def u16(value: int) -> Field:
    """An unsigned 16-bit integer, such as the number of a shard."""
    return Field(ValueType.UINT16, int(value))


def u32(value: int) -> Field:
    """An unsigned 32-bit integer, such as a count or a token id."""
    return Field(ValueType.UINT32, int(value))


def i32(value: int) -> Field:
    """A signed 32-bit integer."""
    return Field(ValueType.INT32, int(value))


def f32(value: float) -> Field:
    """A 32-bit float."""
    return Field(ValueType.FLOAT32, float(value))


def boolean(value: bool) -> Field:
    """A boolean."""
    return Field(ValueType.BOOL, bool(value))


def string(value: str) -> Field:
    """A UTF-8 string."""
    return Field(ValueType.STRING, value)


def array(element: ValueType, values: Any) -> Field:
    """An array of values of one type."""
    return Field(ValueType.ARRAY, values, element)


def encode_string(value: str) -> bytes:
    """The bytes of a string in the file.

    Raises:
        UnicodeEncodeError: for a surrogate that does not stand for a byte (see `Field`).
        TypeError: if `value` is not a string.
    """
    return str.encode(value, "utf-8", "surrogateescape")


def decode_string(data: bytes) -> str:
    """The string that `encode_string` encodes to `data`."""
    return str(data, "utf-8", "surrogateescape")


def layer_number(name: str) -> int | None:
    """The layer that a tensor of this name is of; None outside of layers."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 1 and parts[1].isdigit() else None


def align(position: int, alignment: int) -> int:
    """The first multiple of `alignment` at or after `position`."""
    return -(-position // alignment) * alignment


def is_alignment(value: int) -> bool:
    """Whether an alignment is a power of two, as ggml requires."""
    return value > 0 and value & (value - 1) == 0
