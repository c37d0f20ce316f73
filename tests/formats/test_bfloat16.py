"""BF16 in NumPy: against torch, and on numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from quantcli.tensors.bfloat16 import bfloat16_to_float32, float32_to_bfloat16


def test_every_number_survives_a_round_trip():
    bits = np.arange(1 << 16).astype(np.uint16)
    values = bfloat16_to_float32(bits)
    back = float32_to_bfloat16(values)
    number = ~np.isnan(values)
    assert np.array_equal(back[number], bits[number])
    assert np.isnan(bfloat16_to_float32(back[~number])).all()
    assert number.sum() == (1 << 16) - 2 * 127  # of each sign 127 payloads


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.5, 0xC020),
        (1.00390625, 0x3F80),  # halfway between two: the even one
        (1.01171875, 0x3F82),
        (1.0039064, 0x3F81),
        (3.4e38, 0x7F80),  # beyond the largest
        (np.inf, 0x7F80),
        (np.nan, 0x7FC0),
        (-np.nan, 0x7FC0),
    ],
)
def test_rounding(value: float, bits: int):
    assert float32_to_bfloat16(np.array([value], np.float32))[0] == bits


def test_numbers_are_rounded_as_torch_rounds_them():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(3).integers(0, 1 << 32, 1 << 16, np.uint64).astype(np.uint32).view(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    found, number = float32_to_bfloat16(values), ~np.isnan(values)
    assert np.array_equal(found[number], expected[number])
    assert np.isnan(bfloat16_to_float32(found[~number])).all()  # torch's own bits of NaN depend on the processor
