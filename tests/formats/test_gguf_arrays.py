"""Packed arrays against the values that were packed."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from quantcli.formats.gguf.arrays import PackedNumbers, PackedStrings, string_bounds
from quantcli.formats.gguf.spec import NUMBER_FORMATS, Field, ValueType

TEXTS = ["", "a", "▁déjà", "\udcff", "x" * 300]
PARTS = [(0, None), (0, 2), (1, 3), (2, 99), (3, 1), (-2, None), (5, 6)]


def packed(texts: list[str]) -> bytes:
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    return b"".join(struct.pack("<Q", len(data)) + data for data in encoded)


@pytest.mark.parametrize("part", PARTS)
def test_strings(part: tuple[int, int | None]) -> None:
    data = packed(TEXTS)
    strings = PackedStrings(data, string_bounds(memoryview(data), len(TEXTS)))
    assert len(strings) == len(TEXTS)
    assert strings.elements(*part) == TEXTS[slice(*part)]
    assert strings.unpacked == TEXTS


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("form", NUMBER_FORMATS.values())
def test_numbers(form: str, part: tuple[int, int | None]) -> None:
    values = np.array([0, 1, 1, 0, 1], form)
    numbers = PackedNumbers(values.tobytes(), form)
    assert len(numbers) == 5
    assert numbers.elements(*part) == values[slice(*part)].tolist()
    assert numbers.unpacked.dtype == values.dtype
    assert np.array_equal(numbers.unpacked, values)


@pytest.mark.parametrize("length", [4, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("after", [0, 1])
def test_a_string_past_the_end_is_where_the_bounds_end(length: int, after: int) -> None:
    data = packed(["ab"]) + struct.pack("<Q", length) + b"abc"
    assert string_bounds(memoryview(data), 2 + after).tolist() == [0, 10]


def test_no_strings() -> None:
    assert string_bounds(memoryview(b"abc"), 0).tolist() == [0]


@pytest.mark.parametrize("content", [[1, 2, 3], np.array([1, 2, 3]), PackedNumbers(b"\1\2\3", "<B")])
def test_a_field_gives_elements_however_it_keeps_them(content: object) -> None:
    field = Field(ValueType.ARRAY, content, ValueType.UINT8)
    assert field.count == 3
    assert field.elements(1) == [2, 3]
    assert all(type(value) is int for value in field.elements())
    assert list(field.value) == [1, 2, 3]
