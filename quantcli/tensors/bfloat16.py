"""Casts between float32 and BF16 (the upper 16 bits of a float32), held as uint16 bits, since NumPy has no such dtype."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_QUIET_NAN: Final = np.uint32(0x7FC0)
"""The bits of every NaN after the cast."""


def bfloat16_to_float32(bits: NDArray[Any]) -> NDArray[np.float32]:
    """BF16 bits (uint16) to float32. Exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 to BF16 bits, rounded to nearest even as in torch. NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), _QUIET_NAN, rounded).astype(np.uint16)
