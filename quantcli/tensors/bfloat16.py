"""BF16, the upper half of a float32, as NumPy arrays of its bits: NumPy has no such type."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_QUIET_NAN: Final = np.uint32(0x7FC0)
"""What every NaN becomes."""


def bfloat16_to_float32(bits: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers that the bits of BF16 (uint16) stand for. Exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest numbers of BF16, of two equally near the even one, as torch rounds. NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), _QUIET_NAN, rounded).astype(np.uint16)
