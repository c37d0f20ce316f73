"""The scales of MXFP4 and NVFP4 at their rounding boundaries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES
from quantcli.kernels.rows import quantize


def _scales(name: str, field: str, largest: NDArray[np.float32], length: int) -> NDArray[np.uint8]:
    """The scales of parts of `length` weights whose largest magnitudes are given."""
    x = np.zeros((1, largest.size * length), np.float32)
    x[0, ::length] = largest
    return quantize(x, name).view(TYPES[name].layout)[field].reshape(-1)


def test_the_power_of_two_is_the_floor_of_a_rounded_logarithm() -> None:
    powers = np.exp2(np.arange(-149.0, 128.0)).astype(np.float32)
    near = (powers.view(np.int32)[:, None] + np.arange(-120, 3)).view(np.float32)
    near = near[np.isfinite(near) & (near > 0)]
    logarithm = np.log2(near.astype(np.float64)).astype(np.float32)
    expected = (np.floor(logarithm).astype(np.int32) - 2 + 127).astype(np.uint8)
    np.testing.assert_array_equal(_scales("MXFP4", "e", near, 32), expected)


def test_the_e4m3_scale_rounds_by_its_next_bit_and_saturates_at_the_last_exponent() -> None:
    value = {0: 0.0} | {
        code: (1 + code % 8 / 8) * 2.0 ** (code // 8 - 7) if code >= 8 else code / 512 for code in range(1, 0x78)
    }
    codes = np.array([*value])
    exact = np.array([*value.values()], np.float32)
    middle = (exact[1:] + exact[:-1]) / 2
    # Subnormals are rounded up to the largest of them and no further.
    upper = np.where(codes[1:] == 8, 7, codes[1:])
    # Six times these, so that a sixth of them comes back exactly.
    for largest, expected in (
        (exact, codes),
        (middle, upper),
        (np.nextafter(middle, 0, dtype=np.float32) * (1 - np.float32(2.0**-20)), codes[:-1]),
        (np.array([255.0, 256.0, 300.0, 448.0, 1e30], np.float32), [0x7E] * 5),
    ):
        padded = np.resize(largest * np.float32(6), -(-largest.size // 4) * 4)
        np.testing.assert_array_equal(_scales("NVFP4", "d", padded, 16)[: largest.size], expected)
