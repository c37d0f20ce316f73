"""The reference itself: ggml's quantizers, in the library that llama-cpp-python installs, through ctypes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType, block_type

Quantizer = Callable[..., NDArray[np.uint8]]


def _find_library() -> ctypes.CDLL | None:
    package = find_spec("llama_cpp")
    if package is None or package.origin is None:
        return None
    found = sorted((Path(package.origin).parent / "lib").glob("*ggml-base.*"))
    return ctypes.CDLL(str(found[0])) if found else None


def find_validator() -> Callable[[NDArray[np.uint8], BlockType], bool] | None:
    """A function (blocks uint8, type) -> bool that calls `ggml_validate_row_data`; None as `find_quantizer`."""
    library = _find_library()
    if library is None:
        return None
    validate = library.ggml_validate_row_data
    validate.restype = ctypes.c_bool
    validate.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return lambda data, kind: bool(validate(kind.id, data.ctypes.data, data.size))


def find_quantizer() -> Quantizer | None:
    """A function (rows float32 (rows, n), type, importance (n,) or None, out) -> uint8 (rows, bytes_per_row) that calls
    `ggml_quantize_chunk` on one thread, into `out` where given; None where llama-cpp-python is not installed."""
    library = _find_library()
    if library is None:
        return None
    chunk = library.ggml_quantize_chunk
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


def quantize_apart(
    x: NDArray[np.float32], kind: BlockType, cases: Mapping[str, NDArray[np.float32] | None], folder: Path
) -> dict[str, NDArray[np.uint8]]:
    """What the reference makes of `x` with each importance, in a process of its own: on rows without a usable scale the
    IQ searches may abort, and take the process with them. The cases from there on are missing from the result."""
    np.save(folder / "x.npy", x)
    for number, weights in enumerate(cases.values()):
        if weights is not None:
            np.save(folder / f"importance-{number}.npy", weights)
    command = [sys.executable, __file__, kind.name, str(len(cases)), str(folder)]
    child = subprocess.run(command, env={**os.environ, "GGML_NO_BACKTRACE": "1"}, capture_output=True, check=False)
    assert child.returncode <= 0, child.stderr.decode()
    results = {case: folder / f"result-{number}.npy" for number, case in enumerate(cases)}
    return {case: np.load(path) for case, path in results.items() if path.exists()}


def _quantize_cases(name: str, count: str, folder: str) -> None:
    quantize, place = find_quantizer(), Path(folder)
    assert quantize is not None
    for number in range(int(count)):
        given = place / f"importance-{number}.npy"
        weights = np.load(given) if given.exists() else None
        np.save(place / f"result-{number}.npy", quantize(np.load(place / "x.npy"), block_type(name), weights))


if __name__ == "__main__":
    _quantize_cases(*sys.argv[1:])
