"""Read columns of row-major tensors in bounded memory, for transposes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.tensors.tensor import StoredTensor, Tensor

BLOCK_BYTES: Final = 1 << 20
"""Approximate bytes per read where whole rows are read and only their columns returned."""

READ_BYTES: Final = 1 << 14
"""Approximate bytes copied in the time of one more read call: 2 microseconds, measured."""


@dataclass(frozen=True)
class ColumnRange(Tensor):
    """A range of columns of `source`, from column `first` on."""

    source: Tensor
    first: int

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`. Of long rows in a file only the columns are read. Other rows are read whole."""
        if type(self.source) is StoredTensor and self.source.row_bytes - self.row_bytes > READ_BYTES:
            numbers = replace(self.source, shape=(self.source.size, 1))
            for row, target in zip(range(start, stop), out, strict=True):
                place = row * self.source.row_length + self.first
                numbers.read(place, place + self.row_length, target.reshape(self.row_length, -1))
        else:
            buffer = np.empty((stop - start, self.source.row_bytes), np.uint8)
            self.source.read(start, stop, buffer)
            place = self.type.row_bytes(self.first)
            out[...] = buffer[:, place : place + self.row_bytes]


def column_blocks(source: Tensor, top: int, bottom: int, first: int, last: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    """The columns `first:last` of the rows `top:bottom`, some rows at a time.

    Yields the slice of the rows, counted from `top`, and their values `(rows, last - first)` in the layout of the tensor's
    type. The buffer of the values is reused.
    """
    strip = ColumnRange(source.name, (*source.shape[:-1], last - first), source.type, source, first)
    step = max(1, min(bottom - top, BLOCK_BYTES // max(1, source.row_bytes)))
    buffer = np.empty((step, strip.row_bytes), np.uint8)
    for row in range(top, bottom, step):
        block = buffer[: min(step, bottom - row)]
        strip.read(row, row + len(block), block)
        yield slice(row - top, row - top + len(block)), block.view(source.type.layout)
