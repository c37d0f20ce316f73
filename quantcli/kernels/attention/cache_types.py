"""KV cache types: float32, float16, bfloat16, or quantized blocks of 32 with a scale.

A layer's cached keys or values are an array `(kv_heads, context, elements)`, so one head's history is contiguous. An
element is a number, or a byte for packed types. A head is zero-padded to a multiple of the step or block, which changes no
sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES, BlockType
from quantcli.kernels.blocks.packed_fields import half_at, offsets
from quantcli.kernels.half import float_to_half, half_to_float
from quantcli.kernels.jit import inline
from quantcli.kernels.rows import dequantize, quantize
from quantcli.kernels.simd import convert, load, reinterpret
from quantcli.kernels.threads import parallel_kernel
from quantcli.kernels.threads.loops import parallel_for

STEP: Final = 8
"""Numbers of a head loaded as one vector."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Storage:
    """The operations of a cache type; the last two are `inline` functions.

    store(x, cached, position)     write float32 (rows, kv_heads, size) to the positions from `position` on
    restore(cached)                dequantize positions (kv_heads, rows, elements) to float32 (kv_heads, rows, numbers)
    numbers(elements)              the count of numbers, padding included, in `elements` elements
    read(cached, start, i)         numbers i to i + 7 of the position that begins at element `start`
    """

    dtype: np.dtype[Any]
    block: int
    block_elements: int
    store: Callable[..., None]
    restore: Callable[[NDArray[Any]], Floats]
    numbers: Callable[..., Any]
    read: Callable[..., Any]

    @property
    def packed(self) -> bool:
        """Whether the type is quantized in blocks, whose numbers share a scale."""
        return self.block_elements != self.block

    def elements(self, size: int) -> int:
        """Elements of one position of a head of `size` numbers."""
        return -(-size // self.block) * self.block_elements


def _plain(dtype: type[np.generic], narrow: Any, widen: Any, restore: Callable[[NDArray[Any]], Floats]) -> Storage:
    """A floating-point cache type: an elementwise cast."""

    @inline
    def numbers(elements: Any) -> Any:
        return elements

    @inline
    def read(cached: Any, start: Any, i: Any) -> Any:
        return widen(load(cached, start + i, STEP))

    @inline
    def store_row(row: Any, x: Any, cached: Any, position: Any) -> None:
        for head in range(x.shape[1]):
            for i in range(x.shape[2]):
                cached[head, position + row, i] = narrow(x[row, head, i])

    @parallel_kernel
    def store_rows(pool: Any, x: Any, cached: Any, position: Any) -> None:
        parallel_for(pool, x.shape[0], store_row, (x, cached, position))

    return Storage(np.dtype(dtype), STEP, STEP, store_rows, restore, numbers, read)


def _packed(kind: BlockType, read: Any) -> Storage:
    """A quantized cache type: blocks from the type's own quantizer."""
    block, block_bytes = kind.block_length, kind.block_bytes

    @inline
    def numbers(elements: Any) -> Any:
        return elements // block_bytes * block

    def store(x: Floats, cached: NDArray[np.uint8], position: int) -> None:
        rows, heads, size = x.shape
        if size % block:
            wide = np.zeros((rows, heads, -(-size // block) * block), np.float32)
            wide[:, :, :size] = x
            x = wide
        packed = quantize(x.reshape(rows * heads, -1), kind)
        cached[:, position : position + rows] = packed.reshape(rows, heads, -1).swapaxes(0, 1)

    def restore(cached: NDArray[np.uint8]) -> Floats:
        heads, rows, size = cached.shape
        return dequantize(cached.reshape(-1, size), kind).reshape(heads, rows, -1)

    return Storage(np.dtype(np.uint8), block, block_bytes, store, restore, numbers, read)


def _q8_0() -> Storage:
    kind = TYPES["Q8_0"]
    scale, codes = offsets(kind.name, "d", "qs")
    block, block_bytes = kind.block_length, kind.block_bytes

    @inline
    def read(cached: Any, start: Any, i: Any) -> Any:
        offset = start + i // block * block_bytes
        eight = reinterpret(load(cached, offset + codes + i % block, STEP), np.int8)
        return convert(eight, np.float32) * half_at(cached, offset + scale)

    return _packed(kind, read)


def _q4_0() -> Storage:
    kind = TYPES["Q4_0"]
    scale, codes = offsets(kind.name, "d", "qs")
    block, block_bytes = kind.block_length, kind.block_bytes
    half, zero = block // 2, np.float32(8)

    @inline
    def read(cached: Any, start: Any, i: Any) -> Any:
        offset, place = start + i // block * block_bytes, i % block
        # The low nibbles of a block's bytes are the first half of its codes.
        pairs = convert(load(cached, offset + codes + place % half, STEP), np.int32)
        eight = (pairs >> np.int32(place // half * 4)) & np.int32(15)
        return (convert(eight, np.float32) - zero) * half_at(cached, offset + scale)

    return _packed(kind, read)


@inline
def _same(x: Any) -> Any:
    return x


def _restore_halves(cached: NDArray[Any]) -> Floats:
    return cached.view(np.float16).astype(np.float32)


def _restore_floats(cached: NDArray[Any]) -> Floats:
    return cached.astype(np.float32)


STORAGES: Final[Mapping[str, Storage]] = MappingProxyType(
    {
        "f32": _plain(np.float32, _same, _same, _restore_floats),
        "f16": _plain(np.uint16, float_to_half, half_to_float, _restore_halves),
        "q8_0": _q8_0(),
        "q4_0": _q4_0(),
    }
)
"""The cache types by their names in llama.cpp's `--cache-type-k`."""
