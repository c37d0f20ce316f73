"""Tensors with their last two axes exchanged, read in strips of columns that all threads share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any, Final
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from quantcli.formats.columns import column_blocks
from quantcli.formats.tensor import Tensor

STRIP_BYTES: Final = 1 << 23
"""About how much of a matrix is transposed at a time: four times as much takes as long."""


@dataclass(frozen=True)
class Transposed(Tensor):
    """The last two axes of a tensor exchanged. A stretch of rows is a stretch of columns, cut from blocks of the source."""

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

        Those who read a few columns come back for the next: more are read at once, and kept.
        """
        width = STRIP_BYTES // max(1, self.shape[-1] * self.type.row_bytes(1))
        if last - first >= width:
            self._load_strip(top, first, last, target)
            return
        for start in range(first - first % width, last, width):
            stop = min(start + width, self.source.row_length)
            strip = _STRIPS.find(self.source, top, start, partial(self._loaded, top, start, stop))
            low, high = max(first, start), min(last, stop)
            target[low - first : high - first] = strip[low - start : high - start]

    def _loaded(self, top: int, first: int, last: int) -> NDArray[Any]:
        strip = np.empty((last - first, self.shape[-1]), self.type.layout)
        self._load_strip(top, first, last, strip)
        return strip

    def _load_strip(self, top: int, first: int, last: int, target: NDArray[Any]) -> None:
        for rows, block in column_blocks(self.source, top, top + self.shape[-1], first, last):
            target[:, rows] = block.T


class _Strips:
    """The few strips that were transposed last, for all threads, which work on neighbouring rows."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = RLock()  # a strip may be made of strips of another tensor
        self._held: list[tuple[ref[Tensor], int, int, NDArray[Any]]] = []

    def find(self, source: Tensor, top: int, first: int, load: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The strip of this matrix that begins with this column, loaded by one thread while others wait for it."""
        with self._lock:
            for owner, held_top, held_first, strip in self._held:
                if owner() is source and (held_top, held_first) == (top, first):
                    return strip
            strip = load()
            alive = [entry for entry in self._held if entry[0]() is not None]
            self._held = [*alive[1 - self._count :], (ref(source), top, first, strip)]
            return strip


_STRIPS: Final = _Strips(2)
