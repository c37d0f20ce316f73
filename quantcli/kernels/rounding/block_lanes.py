"""Transposes of blocks, for quantizers that search `LANES` blocks at once, one block per lane.

A transposed array holds element l of the block in `lane` at `l * LANES + lane`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.jit import inline_once
from quantcli.kernels.simd import LANES, load, local, splat, store, transpose_tile


@inline_once
def transpose(source: NDArray[Any], starts: NDArray[np.intp], length: int, out: NDArray[Any]) -> None:
    """Transpose `LANES` blocks of `length` elements (a multiple of 16): block `lane` begins at `source[starts[lane]]`, and
    its element l goes to `out[l * LANES + lane]`."""
    for element in range(0, length, LANES):
        transpose_tile(source, starts, 0, element, out, element * LANES, LANES, LANES)


_ELEMENT_STARTS: Final = LANES * np.arange(256)


@inline_once
def transpose_back(source: NDArray[Any], length: int, out: NDArray[Any]) -> None:
    """The inverse transpose, for blocks of `length` elements (a multiple of 16, at most 256): element l of block `lane`
    goes from `source[l * LANES + lane]` to `out[lane * length + l]`."""
    for element in range(0, length, LANES):
        transpose_tile(source, _ELEMENT_STARTS, element, 0, out, element, length, LANES)


_TILE: Final = LANES * LANES


@inline_once
def mean_squares(x: NDArray[np.float32], rows: int, length: int, means: NDArray[np.float32]) -> None:
    """The mean square of each of `rows` rows of `length` elements, a multiple of 16, written to `means`, which has room for
    `LANES` more.

    Columns are summed in order, first to last. This is a chain of dependent additions, so each lane takes one row.
    """
    starts, tile = local(LANES, np.intp), local(_TILE, np.float32)
    for first in range(0, rows, LANES):
        for lane in range(LANES):
            starts[lane] = min(first + lane, rows - 1) * length
        total = splat(np.float32(0), LANES)
        for column in range(0, length, LANES):
            transpose_tile(x, starts, 0, column, tile, 0, LANES, LANES)
            for element in range(LANES):
                value = load(tile, element * LANES, LANES)
                total = total + value * value
        store(means, first, total / np.float32(length))
