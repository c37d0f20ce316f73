"""Short names of dtypes and array types, so that kernels read like formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = np.float32
I8, I16, I32 = np.int8, np.int16, np.int32
U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Scratch = NDArray[Any]
"""A scratch array of a kernel; its name implies the dtype."""

Vec = Any
"""A vector (see `simd`). numba infers its element type."""
