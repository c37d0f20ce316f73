"""Transposes of blocks, for quantizers that search `LANES` blocks at once, one block per lane.

A transposed array holds element l of the block in `lane` at `l * LANES + lane`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.jit import inline
from quantcli.kernels.simd import LANES, load, splat, store, transpose_tile


@inline
def transpose(source: NDArray[Any], starts: NDArray[np.intp], length: int, out: NDArray[Any]) -> None:
    """Transpose `LANES` blocks of `length` elements (a multiple of 16): block `lane` begins at `source[starts[lane]]`, and
    its element l goes to `out[l * LANES + lane]`."""
    for element in range(0, length, LANES):
        transpose_tile(source, starts, 0, element, out, element * LANES, LANES, LANES)


_ELEMENT_STARTS: Final = LANES * np.arange(256)


@inline
def transpose_back(source: NDArray[Any], length: int, out: NDArray[Any]) -> None:
    """The inverse transpose, for blocks of `length` elements (a multiple of 16, at most 256): element l of block `lane`
    goes from `source[l * LANES + lane]` to `out[lane * length + l]`."""
    for element in range(0, length, LANES):
        transpose_tile(source, _ELEMENT_STARTS, element, 0, out, element, length, LANES)


@inline
def mean_squares(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean square of each row of `(rows, n)`, n a multiple of 16.

    Columns are summed in order, first to last. This is a chain of dependent additions, so each lane takes one row. The
    result has `rows` elements, followed by unused padding.
    """
    rows, length = x.shape
    flat = x.reshape(-1)
    starts = np.empty(LANES, np.intp)
    tile = np.empty(LANES * LANES, np.float32)
    means = np.empty(rows + LANES, np.float32)
    for first in range(0, rows, LANES):
        for lane in range(LANES):
            starts[lane] = min(first + lane, rows - 1) * length
        total = splat(np.float32(0), LANES)
        for column in range(0, length, LANES):
            transpose_tile(flat, starts, 0, column, tile, 0, LANES, LANES)
            for element in range(LANES):
                value = load(tile, element * LANES, LANES)
                total = total + value * value
        store(means, first, total / np.float32(length))
    return means
