"""Shared code of the K-quant families: batches of `LANES` super-blocks, laid out for the searches of `scale_search`.

Sub-block q of a batch is sub-block `q % per_block` of its super-block `q // per_block`. A search takes a group: `LANES`
consecutive sub-blocks. Transposed or not, a group begins at `group * LANES * length`. In a transposed group, element l of
all its sub-blocks is contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import SUPER_BLOCK as K
from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.shorthand import F32, Scratch, Vec
from quantcli.kernels.simd import LANES, load, splat, sqrt, store, transpose_tile


def quantizer_of(rows: Any, weighted: bool) -> Any:
    """A quantizer from its kernel `rows(x, importance, out)`: itself if it reads the importance, otherwise a function
    without that parameter."""
    if weighted:
        return rows

    def quantize(x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        rows(x, x, out)

    return quantize


@inline
def group_count(blocks: int, per_block: int) -> int:
    """Groups of `LANES` sub-blocks that `blocks` super-blocks fill; the last may be padded."""
    return (blocks * per_block + LANES - 1) // LANES


@inline_once
def gather_batch(source: Scratch, size: int, first: int, count: int, batch: Scratch) -> None:
    """Copy the `LANES` super-blocks from number `first` of `count` on to `batch`. The batch is padded with the last one,
    whose repeated results are never stored. `source` is the weights, or the importance vector of one row, which is repeated
    for each row; `size` is its number of elements."""
    for block in range(LANES):
        begin = (min(first + block, count - 1) * K) % size
        for element in range(0, K, LANES):
            store(batch, block * K + element, load(source, begin + element, LANES))


@inline_once
def fill(numbers: Scratch, count: int, number: Any) -> None:
    """Set `count` numbers, a multiple of `LANES`, to one of the same dtype."""
    for place in range(0, count, LANES):
        store(numbers, place, splat(number, LANES))


@inline_once
def transpose_group(batch: Scratch, group: int, starts: NDArray[np.intp], length: int, out: Scratch) -> None:
    """Transpose a group: from consecutive sub-blocks to one per lane, `out[l * LANES + lane]` from the group's base on.
    `starts` is the multiples of `length`."""
    base = group * LANES * length
    for element in range(0, length, LANES):
        transpose_tile(batch, starts, 0, base + element, out, base + element * LANES, LANES, LANES)


@inline_once
def untranspose_group(
    levels: NDArray[np.uint8], group: int, starts: NDArray[np.intp], length: int, out: NDArray[np.uint8]
) -> None:
    """The inverse transpose: from one sub-block per lane to consecutive ones. `starts` is the multiples of `LANES`."""
    base = group * LANES * length
    for element in range(0, length, LANES):
        transpose_tile(levels, starts, 0, base + element * LANES, out, base + element, length, LANES)


@inline_once
def spread_out(values: Scratch, blocks: int, per_block: int, out: Scratch) -> None:
    """Transpose values per sub-block, from sub-block order to one super-block per lane: `out[sub * LANES + block]`."""
    for block in range(blocks):
        for sub in range(per_block):
            out[sub * LANES + block] = values[block * per_block + sub]


@inline_once
def batch_spread(batch: Scratch, factor: float, per_block: int, out: Scratch) -> None:
    """factor * mean(x * x) of each super-block of the batch, repeated for each of its sub-blocks.

    The sum over a super-block is sequential. Four super-blocks at a time hide the latency of the dependent additions.
    """
    for block in range(0, LANES, 4):
        totals = (F32(0), F32(0), F32(0), F32(0))
        for place in range(block * K, (block + 1) * K):
            a, b, c, d = batch[place], batch[place + K], batch[place + 2 * K], batch[place + 3 * K]
            totals = (totals[0] + a * a, totals[1] + b * b, totals[2] + c * c, totals[3] + d * d)
        for one in range(4):
            for sub in range(per_block):
                out[(block + one) * per_block + sub] = F32(factor) * totals[one] / F32(K)


@inline_once
def importance_weights(
    x: Scratch, base: int, length: int, importance: Scratch, spread: Scratch, group: int, weight: Scratch
) -> Vec:
    """Error weights with an importance matrix: importance * sqrt(spread + x * x). Returns each sub-block's sum of
    weights."""
    variance = load(spread, group * LANES, LANES)
    total = splat(F32(0), LANES)
    for element in range(length):
        value = load(x, base + element * LANES, LANES)
        w = load(importance, base + element * LANES, LANES) * sqrt(variance + value * value)
        store(weight, element * LANES, w)
        total = total + w
    return total


@inline
def store_half(out: NDArray[np.uint8], at: int, half: Any) -> None:
    """Write float16 bits, little-endian, at byte `at`."""
    out[at] = half & 255
    out[at + 1] = half >> 8
