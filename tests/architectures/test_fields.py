from __future__ import annotations

import pytest

from quantcli.architectures.gguf_fields import FIELD_TYPES
from quantcli.formats.gguf.spec import ValueType, array, boolean, f32, string, u32


@pytest.mark.parametrize(
    ("kind", "value", "field"),
    [
        ("u32", 2**32 - 1, u32(2**32 - 1)),
        ("u32", 8.0, u32(8)),
        ("f32", 3, f32(3.0)),
        ("f32", 1e-5, f32(1e-5)),
        ("bool", False, boolean(False)),
        ("string", "yarn", string("yarn")),
        ("i32[]", [1, -2], array(ValueType.INT32, [1, -2])),
        ("f32[]", [1, 0.5], array(ValueType.FLOAT32, [1.0, 0.5])),
        ("bool[]", [True], array(ValueType.BOOL, [True])),
        ("u32 or i32[]", 4, u32(4)),
        ("u32 or i32[]", [4, 8], array(ValueType.INT32, [4, 8])),
    ],
)
def test_fields(kind, value, field):
    assert FIELD_TYPES[kind](value) == field


@pytest.mark.parametrize(
    ("kind", "value"),
    [("f32", 1e300), ("f32[]", [1e39]), ("i32", 2**31), ("u32", -1), ("u32", 2**32), ("u32", 0.5),
     ("u32", True), ("u32", "8"), ("u32", float("inf")), ("u32", float("nan")),
     ("u32", [1]), ("f32", "1"), ("f32", True), ("f32", 10**400), ("bool", 0), ("bool", "true"), ("string", 1),
     ("i32[]", 1), ("i32[]", [2**31]), ("i32[]", [0.5]), ("f32", float("nan")),
     ("f32[]", [None]), ("bool[]", [1]), ("u32 or i32[]", [-(2**31) - 1])],
)  # fmt: skip
def test_what_does_not_fit(kind, value):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        FIELD_TYPES[kind](value)
