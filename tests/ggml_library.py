"""The reference itself: ggml's quantizers, in the library that llama-cpp-python installs, through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.types import BlockType

Quantizer = Callable[..., NDArray[np.uint8]]


def find_quantizer() -> Quantizer | None:
    """A function (rows float32 (rows, n), type, importance (n,) or None, out) -> uint8 (rows, bytes_per_row) that calls
    `ggml_quantize_chunk` on one thread, into `out` where given; None where llama-cpp-python is not installed."""
    package = find_spec("llama_cpp")
    if package is None or package.origin is None:
        return None
    found = sorted((Path(package.origin).parent / "lib").glob("*ggml-base.*"))
    if not found:
        return None
    chunk = ctypes.CDLL(str(found[0])).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(
        x: NDArray[np.float32],
        kind: BlockType,
        importance: NDArray[np.float32] | None,
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        rows, length = x.shape
        if out is None:
            out = np.empty((rows, kind.row_bytes(length)), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        written = chunk(kind.id, x.ctypes.data, out.ctypes.data, 0, rows, length, weights)
        assert written == out.size
        return out

    return quantize
