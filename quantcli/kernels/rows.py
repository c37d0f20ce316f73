"""Quantize and dequantize rows: calls the kernels after checking arguments.

The kernels under `blocks/` are serial and release the GIL. To use several cores, call these functions from a thread pool
over chunks of rows. The result does not depend on the chunking.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType, block_type
from quantcli.kernels.blocks import codec
from quantcli.kernels.blocks.dequantize import dequantizer
from quantcli.kernels.compilation import compile_ahead
from quantcli.kernels.jit import kernel
from quantcli.kernels.rounding.exact_grids import repack
from quantcli.kernels.simd import LANES, absolute, all_lanes, load, splat


def quantize(
    x: NDArray[np.float32],
    kind: str | BlockType,
    importance: NDArray[np.float32] | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Quantize float32 rows `(rows, n)` to blocks, uint8 `(rows, bytes_per_row)`: the same bytes as llama.cpp.

    `importance` is float32 `(n,)`: the importance matrix's weight for each column's squared error, shared by all rows.
    `out` receives the result where given.

    Raises:
        ValueError: for an unknown type, an array of another shape or dtype, a row length the block does not divide, or a
            type that needs an importance vector and has none.
    """
    target = kind if isinstance(kind, BlockType) else block_type(kind)
    if x.ndim != 2 or x.dtype != np.float32:
        raise ValueError(f"expected float32 rows (rows, n), got {x.dtype} {x.shape}")
    rows, length = x.shape
    shape = (rows, target.row_bytes(length))
    if out is None:
        out = np.empty(shape, np.uint8)
    _check_bytes(out, shape)
    functions = codec(target)
    x = np.ascontiguousarray(x)
    if importance is not None and functions.quantize_weighted is not None:
        if importance.shape != (length,) or importance.dtype != np.float32:
            raise ValueError(f"expected float32 importance ({length},), got {importance.dtype} {importance.shape}")
        if not (np.isfinite(importance) & (importance >= 0)).all():
            raise ValueError("importance values must be finite, zero or greater")
        functions.quantize_weighted(x, np.ascontiguousarray(importance), out)
    elif functions.quantize is None:
        raise ValueError(f"{target.name} needs an importance vector: without one its result is unusable")
    else:
        functions.quantize(x, out)
    return out


def dequantize(
    data: NDArray[np.uint8], kind: str | BlockType, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Dequantize blocks, uint8 `(rows, bytes_per_row)`, to float32 `(rows, n)`.

    Raises:
        ValueError: for an unknown type or an array of another shape or dtype.
    """
    source = kind if isinstance(kind, BlockType) else block_type(kind)
    if data.ndim != 2 or data.dtype != np.uint8 or data.shape[1] % source.block_bytes:
        raise ValueError(f"expected uint8 rows of whole {source.block_bytes}-byte blocks, got {data.dtype} {data.shape}")
    shape = (data.shape[0], data.shape[1] // source.block_bytes * source.block_length)
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"expected contiguous float32 output {shape}, got {out.dtype} {out.shape}")
    data = np.ascontiguousarray(data).view()
    data.flags.writeable = False  # else numba compiles a second kernel for arrays that may be written to
    dequantizer(source)(data, out)
    return out


def repack_inexact(x: NDArray[np.float32], kind: BlockType, source: BlockType, out: NDArray[np.uint8]) -> None:
    """Make the round trip of quantized rows lossless, for weights that lie on the quantization grid of `kind`.

    x        float32 (rows, n), values representable in the type `source`
    out      uint8 (rows, bytes_per_row), the result of `quantize`; blocks that do not dequantize to x are packed again

    A repacked block dequantizes to x exactly. Where no block can, it dequantizes to x after rounding to `source`.

    Raises:
        ValueError: if a block does not lie on the grid, or the type has no grid in `GRIDS`.
    """
    inexact = (dequantize(out, kind) != x).reshape(-1, kind.block_length).any(1)
    if inexact.any():
        repack(x, kind, source, inexact, out)


def first_beyond(x: NDArray[np.float32], limit: float) -> int:
    """The flat index, in C order, of the first element of a contiguous float32 array that is NaN or exceeds `limit` in
    magnitude; -1 if there is none."""
    return int(_first_beyond(x.reshape(-1), np.float32(limit)))


@kernel
def _first_beyond(x: NDArray[np.float32], largest: np.float32) -> int:
    whole = x.size // LANES * LANES
    for start in range(0, whole, LANES):
        if not all_lanes(absolute(load(x, start, LANES)) <= splat(largest, LANES)):
            whole = start
            break
    for place in range(whole, x.size):
        if not abs(x[place]) <= largest:
            return place
    return -1


def compile_kernels(decode: set[BlockType], encode: set[tuple[BlockType, bool]]) -> None:
    """Compile what `dequantize` from `decode` and `quantize` to `encode` (type, with importance) need, or fetch it from the
    cache, so that nothing waits for it later."""
    compile_ahead(partial(call_kernels, decode, encode))


def call_kernels(decode: set[BlockType], encode: set[tuple[BlockType, bool]]) -> None:
    """Call the kernels of `compile_kernels` once each."""
    for source in sorted(decode, key=lambda kind: kind.name):
        dequantize(np.zeros((1, source.block_bytes), np.uint8), source)
    for target, weighted in sorted(encode, key=lambda pair: (pair[0].name, pair[1])):
        row = np.zeros((1, target.block_length), np.float32)
        quantize(row, target, np.ones(target.block_length, np.float32) if weighted else None)
    first_beyond(np.zeros(1, np.float32), 1)


def _check_bytes(out: NDArray[np.uint8], shape: tuple[int, int]) -> None:
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"expected contiguous uint8 output {shape}, got {out.dtype} {out.shape}")
