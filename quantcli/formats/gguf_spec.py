"""What a GGUF file is made of: the constants of the header and the typed values of its metadata.

Source: the GGUF specification (`docs/gguf.md` of ggml) and `gguf.h` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

MAGIC: Final = b"GGUF"
VERSION: Final = 3
"""The version written. Versions 2 and 3 have the same layout and are both read."""

DEFAULT_ALIGNMENT: Final = 32
"""Tensor data starts at multiples of this, unless `general.alignment` says otherwise."""

MAX_DIMENSIONS: Final = 4
MAX_NAME_LENGTH: Final = 63
"""Bytes of a tensor name (ggml keeps 64 with the final zero)."""


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


@dataclass(frozen=True, slots=True)
class Field:
    """A metadata value with its exact type.

    `value` is an int, float, bool or str, or for ARRAY a list or NumPy array of them, and then `element` is their type.
    """

    type: ValueType
    value: Any
    element: ValueType | None = None


Metadata = dict[str, Field]
"""Metadata in the order of the file."""


def u32(value: int) -> Field:
    """An unsigned 32-bit integer: counts and token ids."""
    return Field(ValueType.UINT32, int(value))


def i32(value: int) -> Field:
    """A signed 32-bit integer."""
    return Field(ValueType.INT32, int(value))


def f32(value: float) -> Field:
    """A 32-bit float."""
    return Field(ValueType.FLOAT32, float(value))


def boolean(value: bool) -> Field:
    """A truth value."""
    return Field(ValueType.BOOL, bool(value))


def string(value: str) -> Field:
    """A UTF-8 string."""
    return Field(ValueType.STRING, value)


def array(element: ValueType, values: Any) -> Field:
    """An array of values of one type."""
    return Field(ValueType.ARRAY, values, element)
