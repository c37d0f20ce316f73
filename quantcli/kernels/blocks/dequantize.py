"""Dequantization to float32, derived from each type's reader: weight = scale * (code - zero) - minimum.

Each operation is rounded once, in the order of `dequantize_row_*` in `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType
from quantcli.kernels.blocks import codec
from quantcli.kernels.blocks.reader import MAX_GROUPS, PART, PackedReader, PlainReader
from quantcli.kernels.jit import inline, kernel
from quantcli.kernels.shorthand import Bytes, Floats
from quantcli.kernels.simd import LANES, address, convert, lane, load, local, shuffle, store

Dequantize = Callable[[NDArray[np.uint8], NDArray[np.float32]], None]
"""(data, out): data uint8 (rows, bytes_per_row), out float32 (rows, n), both C-contiguous."""


@cache
def dequantizer(block_type: BlockType) -> Dequantize:
    """The serial kernel that dequantizes rows of a type, for read-only `data`. It checks no arguments and releases the GIL.

    Raises:
        ValueError: for a type that is only stored.
    """
    reader = codec(block_type).reader
    if block_type.layout == np.float32:
        return _copy
    return _plain(reader, block_type) if isinstance(reader, PlainReader) else _packed(reader, block_type)


def _copy(data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    out.view(np.uint8)[...] = data


def _plain(reader: PlainReader, block_type: BlockType) -> Dequantize:
    widen, widen_one, size = reader.widen, reader.widen_one, block_type.block_bytes

    @kernel
    def dequantize(data: Bytes, out: Floats) -> None:
        packed, values = address(data, np.uint8), out.reshape(-1)
        whole = values.size // LANES * LANES
        for start in range(0, whole, LANES):
            store(values, start, widen(packed, start * size))
        for place in range(whole, values.size):
            values[place] = widen_one(packed, place * size)

    return dequantize


def _packed(reader: PackedReader, block_type: BlockType) -> Dequantize:
    codes_of, scales_of, minimums_of = reader.codes, reader.scales, reader.minimums or reader.scales
    length, block_bytes, has_minimums = block_type.block_length, block_type.block_bytes, reader.minimums is not None
    parts, part_groups = length // PART, PART // reader.group
    one_part, one_scale = length == reader.group, reader.scale_half is not None
    weights_of = _weights_of_codes(reader)
    spread: Any = shuffle(*(group for group in range(part_groups) for _ in range(reader.group)))

    @kernel
    def dequantize(data: Bytes, out: Floats) -> None:
        packed, values = address(data, np.uint8), address(out, np.float32)
        scales, minimums = local(MAX_GROUPS, np.float32), local(MAX_GROUPS, np.float32)
        for block in range(out.size // length):
            offset, first = block * block_bytes, block * length
            if one_part:
                # Codes first: Q8_0 takes 1.7 times as long if the scale is read before them.
                codes = codes_of(packed, offset, 0)
                scale, minimum = lane(scales_of(packed, offset), 0), lane(minimums_of(packed, offset), 0)
                store(values, first, weights_of(codes, scale, minimum))
                continue
            if one_scale:
                scale, minimum = lane(scales_of(packed, offset), 0), lane(minimums_of(packed, offset), 0)
                for part in range(parts):
                    store(values, first + part * PART, weights_of(codes_of(packed, offset, part), scale, minimum))
                continue
            store(scales, 0, scales_of(packed, offset))
            if has_minimums:
                store(minimums, 0, minimums_of(packed, offset))
            for part in range(parts):
                few = load(scales, part * part_groups, part_groups)
                scale = spread(few, few)
                few = load(minimums, part * part_groups, part_groups)
                minimum = spread(few, few)
                store(values, first + part * PART, weights_of(codes_of(packed, offset, part), scale, minimum))

    return dequantize


def _weights_of_codes(reader: PackedReader) -> Callable[..., Any]:
    """The function (codes, scale, minimum) -> weights. Scale and minimum are numbers or vectors."""
    has_zero, has_minimums, zero = reader.zero != 0, reader.minimums is not None, np.float32(reader.zero)

    @inline
    def weights_of(codes: Any, scale: Any, minimum: Any) -> Any:
        value = convert(codes, np.float32)
        if has_zero:
            value = value - zero
        value = value * scale
        return value - minimum if has_minimums else value

    return weights_of
