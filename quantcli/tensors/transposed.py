"""Transposes of the last two axes, read in blocks of columns that all threads share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.tensors.array_cache import ArrayCache, Same
from quantcli.tensors.column_blocks import column_blocks
from quantcli.tensors.tensor import Tensor

BLOCK_BYTES: Final = 1 << 23
"""Approximate bytes of a matrix transposed at a time: four times as much takes as long."""


@dataclass(frozen=True)
class Transposed(Tensor):
    """A tensor with its last two axes transposed. A range of rows is read as columns from blocks of the source."""

    source: Tensor

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        columns, height = self.shape[-2], self.shape[-1]
        target = out.view(self.type.layout)
        for matrix in range(start // columns, -(-stop // columns)):
            first, last = max(start, matrix * columns), min(stop, (matrix + 1) * columns)
            self._read_columns(
                matrix * height, first - matrix * columns, last - matrix * columns, target[first - start : last - start]
            )

    def _read_columns(self, top: int, first: int, last: int, target: NDArray[Any]) -> None:
        """Fill `target` with the columns `first:last` of the matrix whose first row is `top` of the source.

        A caller that reads a few columns will read the next ones, so more are read at once and cached.
        """
        width = BLOCK_BYTES // max(1, self.shape[-1] * self.type.row_bytes(1))
        if last - first >= width:
            self._load_columns(top, first, last, target)
            return
        for start in range(first - first % width, last, width):
            stop = min(start + width, self.source.row_length)
            block = _BLOCKS.get((Same(self.source), top, start), partial(self._loaded, top, start, stop))
            low, high = max(first, start), min(last, stop)
            target[low - first : high - first] = block[low - start : high - start]

    def _loaded(self, top: int, first: int, last: int) -> NDArray[Any]:
        block = np.empty((last - first, self.shape[-1]), self.type.layout)
        self._load_columns(top, first, last, block)
        return block

    def _load_columns(self, top: int, first: int, last: int, target: NDArray[Any]) -> None:
        for rows, part in column_blocks(self.source, top, top + self.shape[-1], first, last):
            target[:, rows] = part.T


_BLOCKS: Final = ArrayCache(2 * BLOCK_BYTES)
"""The most recently transposed blocks."""
