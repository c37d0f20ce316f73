"""Hyperparameters as typed GGUF values, without implicit conversion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from quantcli.formats.gguf.spec import Field, ValueType, array, boolean, f32, i32, string, u32

LARGEST_FLOAT: Final = 3.4028234663852886e38
"""The largest float32."""


def _whole(value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or int(value) != value or not low <= value < high:
        raise ValueError(value)
    return int(value)


def _unsigned(value: Any) -> Field:
    return u32(_whole(value, 0, 1 << 32))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_FLOAT:
        raise ValueError(value)
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value


def _signed(value: Any) -> int:
    return _whole(value, -1 << 31, 1 << 31)


def _array(element: ValueType, item: Callable[[Any], Any]) -> Callable[[Any], Field]:
    def make(values: Any) -> Field:
        if not isinstance(values, list):
            raise ValueError(values)
        return array(element, [item(value) for value in values])

    return make


def _count_or_counts(value: Any) -> Field:
    return FIELD_TYPES["i32[]" if isinstance(value, list) else "u32"](value)


FIELD_TYPES: Final[Mapping[str, Callable[[Any], Field]]] = MappingProxyType(
    {
        "u32": _unsigned,
        "i32": lambda value: i32(_signed(value)),
        "f32": lambda value: f32(_number(value)),
        "bool": lambda value: boolean(_truth(value)),
        "string": lambda value: string(_text(value)),
        "i32[]": _array(ValueType.INT32, _signed),
        "f32[]": _array(ValueType.FLOAT32, _number),
        "bool[]": _array(ValueType.BOOL, _truth),
        "string[]": _array(ValueType.STRING, _text),
        "u32 or i32[]": _count_or_counts,
    }
)
"""The types of metadata rows. Each converts a value to a field, or raises TypeError, ValueError or OverflowError.

`u32 or i32[]` is for hyperparameters with one value for the model or one per layer.
"""


def plain_value(field: Field) -> Any:
    """A field as a value of JSON, the inverse of `FIELD_TYPES`. A 32-bit float is the shortest number with its bits."""
    value = field.elements() if field.type is ValueType.ARRAY else field.value
    if ValueType.FLOAT32 in (field.type, field.element):
        return [_shortest(item) for item in value] if isinstance(value, list) else _shortest(value)
    return value


def _shortest(value: float) -> float:
    import numpy as np

    return float(str(np.float32(value)))
