"""Quantization on load: runs a file of float weights as if it had been quantized."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType, block_type
from quantcli.core.errors import UsageError
from quantcli.kernels.products.matmul import multiplier
from quantcli.kernels.rows import compile_kernels, dequantize, quantize
from quantcli.kernels.threads import thread_count

CHUNK: Final = 1 << 20
"""About how many weights a thread dequantizes at once."""


def packing_type(name: str) -> BlockType:
    """The type to quantize weights to.

    Raises:
        UsageError: for an unknown type, one without quantization or matrix multiplication, or one that needs an importance
            matrix.
    """
    try:
        kind = block_type(name)
        multiplier(kind)
        quantize(np.zeros((1, kind.block_length), np.float32), kind)
    except (ValueError, KeyError) as error:
        raise UsageError(f"weights cannot be packed as {name!r}: {error}") from error
    return kind


def can_quantize(source: BlockType, row_length: int, target: BlockType) -> bool:
    """Whether rows can be quantized: floats of more bits than the target, and a multiple of its block length."""
    smaller = target.bits_per_weight < source.bits_per_weight
    return source.family == "floats" and smaller and row_length % target.block_length == 0


def quantize_rows(data: NDArray[np.uint8], source: BlockType, target: BlockType) -> NDArray[np.uint8]:
    """Quantize rows of floats, uint8 `(rows, bytes)`, in parallel."""
    length = data.shape[1] // source.block_bytes * source.block_length
    out = np.empty((data.shape[0], target.row_bytes(length)), np.uint8)
    step = max(1, CHUNK // length)
    compile_kernels({source}, {(target, False)})  # in this thread, which announces it

    def chunk(start: int) -> None:
        quantize(dequantize(data[start : start + step], source), target, out=out[start : start + step])

    with ThreadPoolExecutor(thread_count()) as pool:
        # Consuming the iterator raises exceptions of the threads.
        tuple(pool.map(chunk, range(0, data.shape[0], step)))
    return out
