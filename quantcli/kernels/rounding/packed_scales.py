"""The scales of packed blocks as numbers, and back.

With it, rounding comes in three phases that a caller may drive one by one, as rounding with error feedback does:

1. Choose scales for blocks from their current values: `rows.quantize`, llama.cpp's search, and `unpack_scales`.
2. Round codes under fixed scales: `fixed_scales.round_codes`, for any range of columns.
3. Pack other scales: `pack_scales`. Codes are kept, so that they are rounded again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType, block_type
from quantcli.kernels.blocks import codec
from quantcli.kernels.blocks.reader import MAX_GROUPS
from quantcli.kernels.blocks.scale_fields import ScaleFields
from quantcli.kernels.jit import kernel
from quantcli.kernels.shorthand import Bytes, Scratch


@dataclass(frozen=True, eq=False)
class PackedScales:
    """The scales of rows of blocks: `ScaleFields` says what they mean.

    d, dmin           float32 (rows, blocks): the blocks' scales, and their scales of minimums
    scales, minimums  int32 (rows, blocks, groups): the groups' quantized scales and minimums
    """

    d: NDArray[np.float32]
    dmin: NDArray[np.float32]
    scales: NDArray[np.int32]
    minimums: NDArray[np.int32]


def scale_fields(kind: BlockType) -> ScaleFields:
    """The scale fields of a type.

    Raises:
        ValueError: for a type that is only stored, or whose codes do not stand for single weights.
    """
    fields = codec(kind).scales
    if fields is None:
        raise ValueError(f"{kind.name} has no scale fields")
    return fields


def unpack_scales(data: NDArray[np.uint8], kind: str | BlockType) -> PackedScales:
    """The scales of rows of blocks.

    data  uint8 (rows, bytes_per_row), C-contiguous

    Raises:
        ValueError: for an unknown type or one without scale fields, or an array of another shape or dtype.
    """
    target = kind if isinstance(kind, BlockType) else block_type(kind)
    groups = target.block_length // scale_fields(target).group
    blocks = _blocks(data, target)
    d, dmin = np.empty((2, *blocks), np.float32)
    scales, minimums = np.zeros((2, *blocks, groups), np.int32)
    _kernels(target)[0](data, d, dmin, scales, minimums)
    return PackedScales(d, dmin, scales, minimums)


def pack_scales(scales: PackedScales, data: NDArray[np.uint8], kind: str | BlockType) -> None:
    """Write scales into rows of blocks in place, keeping the codes.

    data  uint8 (rows, bytes_per_row), C-contiguous: blocks of `kind`

    Raises:
        ValueError: for an unknown type or one without scale fields, an array of another shape or dtype, blocks that cannot
            be written, or quantized scales that the type does not have.
    """
    target = kind if isinstance(kind, BlockType) else block_type(kind)
    fields = scale_fields(target)
    blocks = _blocks(data, target)
    groups = target.block_length // fields.group
    if not data.flags.writeable:
        raise ValueError("expected blocks that can be written")
    for name, values, shape in (
        ("d", scales.d, blocks), ("dmin", scales.dmin, blocks),
        ("scales", scales.scales, (*blocks, groups)), ("minimums", scales.minimums, (*blocks, groups)),
    ):  # fmt: skip
        if values.shape != shape:
            raise ValueError(f"expected {name} {shape}, got {values.shape}")
    for name, quantized, valid in (
        ("scales", scales.scales, fields.scales), ("minimums", scales.minimums, fields.minimums),
    ):  # fmt: skip
        if valid and quantized.size and not valid[0] <= quantized.min() <= quantized.max() <= valid[-1]:
            raise ValueError(f"expected quantized {name} within {valid[0]} to {valid[-1]} for {target.name}")
    _kernels(target)[1](
        data, np.ascontiguousarray(scales.d, np.float32), np.ascontiguousarray(scales.dmin, np.float32),
        np.ascontiguousarray(scales.scales, np.int32), np.ascontiguousarray(scales.minimums, np.int32),
    )  # fmt: skip


def _blocks(data: NDArray[np.uint8], kind: BlockType) -> tuple[int, int]:
    """(rows, blocks) of packed rows."""
    if data.ndim != 2 or data.dtype != np.uint8 or data.shape[1] % kind.block_bytes or not data.flags.c_contiguous:
        raise ValueError(f"expected contiguous uint8 rows of {kind.name} blocks, got {data.dtype} {data.shape}")
    return data.shape[0], data.shape[1] // kind.block_bytes


@cache
def _kernels(kind: BlockType) -> tuple[Any, Any]:
    """(unpack, pack): serial kernels over all blocks of the rows."""
    fields = scale_fields(kind)
    load_fields, store_fields = fields.load, fields.store
    block_bytes, groups = kind.block_bytes, kind.block_length // fields.group

    @kernel
    def unpack(data: Bytes, d: Scratch, dmin: Scratch, scales: Scratch, minimums: Scratch) -> None:
        packed, all_scales, all_minimums = data.reshape(-1), scales.reshape(-1, groups), minimums.reshape(-1, groups)
        d_of, dmin_of = d.reshape(-1), dmin.reshape(-1)
        found, found_minimums = np.zeros(MAX_GROUPS, np.int32), np.zeros(MAX_GROUPS, np.int32)
        for block in range(d_of.size):
            d_of[block], dmin_of[block] = load_fields(packed, block * block_bytes, found, found_minimums)
            all_scales[block] = found[:groups]
            all_minimums[block] = found_minimums[:groups]

    @kernel
    def pack(data: Bytes, d: Scratch, dmin: Scratch, scales: Scratch, minimums: Scratch) -> None:
        packed, all_scales, all_minimums = data.reshape(-1), scales.reshape(-1, groups), minimums.reshape(-1, groups)
        d_of, dmin_of = d.reshape(-1), dmin.reshape(-1)
        for block in range(d_of.size):
            store_fields(packed, block * block_bytes, d_of[block], dmin_of[block], all_scales[block], all_minimums[block])

    return unpack, pack
