"""How products read F32, F16 and BF16: each number as float32."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import numpy as np

from quantcli.kernels.dots import PlainDot
from quantcli.kernels.half import bfloat_to_float, half_to_float
from quantcli.kernels.jit import inline
from quantcli.kernels.simd import LANES, load, load_scalar, reinterpret


@inline
def _same(value: Any) -> Any:
    return value


def _dot(decode: Any, stored: Any) -> PlainDot:
    """Numbers that are stored as elements of dtype `stored`."""
    vector_bytes = LANES * np.dtype(stored).itemsize

    @inline
    def widen(weights: Any, offset: Any) -> Any:
        return decode(reinterpret(load(weights, offset, vector_bytes), stored))

    @inline
    def widen_one(weights: Any, offset: Any) -> Any:
        return decode(load_scalar(weights, offset, stored))

    return PlainDot(widen, widen_one)


DOTS: Final = MappingProxyType(
    {
        "F32": _dot(_same, np.float32),
        "F16": _dot(half_to_float, np.uint16),
        "BF16": _dot(bfloat_to_float, np.uint16),
    }
)
