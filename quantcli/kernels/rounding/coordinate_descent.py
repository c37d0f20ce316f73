"""Coordinate descent on codes: after rounding with error feedback, each code in turn moves to where the loss of its row is
least with all other codes as they are. Scales are kept.

The loss is e H e^T with e = w - q. With g = e H, a code of column k is best nearest to q[k] + g[k] / H[k, k].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType
from quantcli.kernels.blocks import codec
from quantcli.kernels.blocks.reader import MAX_GROUPS, PackedReader
from quantcli.kernels.jit import inline, inline_once, kernel
from quantcli.kernels.products.outer_sums import add_products
from quantcli.kernels.rounding.levels import Levels, levels_of
from quantcli.kernels.rounding.stretch import STRETCH
from quantcli.kernels.shorthand import F32, Bytes, Floats
from quantcli.kernels.simd import LANES, absolute, address, any_lane, fma, load, local, select, splat, store

_PASSES: Final = 2
"""How often the columns of a stretch are visited. A second time costs little beside the product for the gradients."""

_PLACES: Final = STRETCH * LANES
_LEAST_GAIN: Final = F32(1e-6)
"""A code moves where this gains more than rounding errors, relative to the loss of its move."""

_LEAST_SCALE: Final = F32(np.finfo(np.float32).tiny)


def descend(
    weights: NDArray[np.float32], errors: NDArray[np.float32], moment: NDArray[np.float32], kind: BlockType,
    data: NDArray[np.uint8],
) -> None:  # fmt: skip
    """One sweep over all columns, in place.

    weights, errors  float32 (n, rows), transposed: w, and w - q
    moment           float32 (n, n): H
    data             uint8 (rows, bytes_per_row): the blocks of `kind`
    """
    visit, n, rows = _visitor(kind), len(moment), weights.shape[1]
    for first in range(0, n, STRETCH):
        width = min(STRETCH, n - first)
        gradients = np.zeros((width, rows), np.float32)
        add_products(moment, 0, first, errors, gradients)
        near = np.zeros((STRETCH, STRETCH), np.float32)
        near[:width, :width] = moment[first : first + width, first : first + width]
        visit(weights, errors, gradients, near, first, data)


def _scale_reader(reader: PackedReader, groups: int) -> Callable[..., None]:
    """The `inline_once` function that reads the scales and minimums of a block of each of `LANES` rows, `stride` bytes
    apart. They are stored from group `first` on."""
    scales_of, minimums_of, affine = reader.scales, reader.minimums or reader.scales, reader.minimums is not None

    @inline_once
    def read_scales(packed: Any, offset: Any, stride: Any, first: Any, scales: Any, minimums: Any) -> None:
        found = local(MAX_GROUPS, np.float32)
        for lane in range(LANES):
            store(found, 0, scales_of(packed, offset + lane * stride))
            for g in range(groups):
                scales[(first + g) * LANES + lane] = found[g]
                minimums[(first + g) * LANES + lane] = F32(0)
            if affine:
                store(found, 0, minimums_of(packed, offset + lane * stride))
                for g in range(groups):
                    minimums[(first + g) * LANES + lane] = found[g]

    return read_scales


def _level_finder(levels: Levels) -> Callable[..., Any]:
    """The `inline` function that gives the level nearest to a value. Where the scale is 0, all are."""
    nearest = levels.nearest

    @inline
    def level_of(value: Any, scale: Any, low: Any) -> Any:
        usable, zero = absolute(scale) > _LEAST_SCALE, splat(F32(0), LANES)
        return nearest(select(usable, (value + low) / select(usable, scale, splat(F32(1), LANES)), zero))

    return level_of


def _mover(level_of: Callable[..., Any], group: int) -> Callable[..., None]:
    """The `inline_once` function that moves the codes of column k of a stretch, and updates the gradients of the others."""

    @inline_once
    def move(k: Any, width: Any, own: Any, error: Any, gradient: Any, near: Any, scales: Any, minimums: Any) -> None:
        scale, low = load(scales, k // group * LANES, LANES), load(minimums, k // group * LANES, LANES)
        steep, slope, off = near[k * STRETCH + k], load(gradient, k * LANES, LANES), load(error, k * LANES, LANES)
        value = load(own, k * LANES, LANES) - off
        change = level_of(value + slope / steep, scale, low) * scale - low - value
        cost = change * change * steep
        better = change * slope * F32(2) - cost > cost * _LEAST_GAIN
        if any_lane(better):
            change = select(better, change, splat(F32(0), LANES))
            store(error, k * LANES, off - change)
            for j in range(width):
                slope = load(gradient, j * LANES, LANES)
                store(gradient, j * LANES, fma(-change, splat(near[k * STRETCH + j], LANES), slope))

    return move


@cache
def _visitor(kind: BlockType) -> Callable[..., None]:
    """The serial kernel `visit(weights, errors, gradients, near, first, data)` of the columns of a stretch from `first` on.

    gradients  float32 (width, rows): e H of these columns
    near       float32 (STRETCH, STRETCH): H of these columns
    """
    functions = codec(kind)
    reader, writer = functions.reader, functions.writer
    if writer is None or not isinstance(reader, PackedReader):
        raise ValueError(f"{kind.name} has no codes of single weights")
    levels, length, block_bytes, group = levels_of(reader, writer), kind.block_length, kind.block_bytes, reader.group
    level_of, zero, write = _level_finder(levels), levels.zero, writer.store
    move, read_scales = _mover(level_of, group), _scale_reader(reader, length // group)

    @kernel
    def visit(weights: Floats, errors: Floats, gradients: Floats, near: Floats, first: int, data: Bytes) -> None:
        rows, width, packed, stride = weights.shape[1], gradients.shape[0], data.reshape(-1), data.shape[1]
        all_weights, all_errors = address(weights, np.float32), address(errors, np.float32)
        all_gradients, moment = address(gradients, np.float32), address(near, np.float32)
        own, error, gradient = local(_PLACES, np.float32), local(_PLACES, np.float32), local(_PLACES, np.float32)
        scales, minimums = local(_PLACES, np.float32), local(_PLACES, np.float32)
        codes = np.empty(length, np.uint8)
        for row in range(0, rows, LANES):
            start = row * stride + first // length * block_bytes
            for k in range(width):
                store(own, k * LANES, load(all_weights, (first + k) * rows + row, LANES))
                store(error, k * LANES, load(all_errors, (first + k) * rows + row, LANES))
                store(gradient, k * LANES, load(all_gradients, k * rows + row, LANES))
            for block in range(width // length):
                read_scales(packed, start + block * block_bytes, stride, block * length // group, scales, minimums)
            for _ in range(_PASSES):
                for k in range(width):
                    move(k, width, own, error, gradient, moment, scales, minimums)
            for k in range(width):
                off = load(error, k * LANES, LANES)
                store(all_errors, (first + k) * rows + row, off)
                scale, low = load(scales, k // group * LANES, LANES), load(minimums, k // group * LANES, LANES)
                store(own, k * LANES, level_of(load(own, k * LANES, LANES) - off, scale, low))
            for block in range(width // length):
                for lane in range(LANES):
                    for k in range(length):
                        codes[k] = np.uint8(np.int32(own[(block * length + k) * LANES + lane]) + zero)
                    write(packed, start + lane * stride + block * block_bytes, codes)

    return visit
