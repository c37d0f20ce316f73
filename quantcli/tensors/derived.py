"""Lazy tensors derived from other tensors: renamed, reshaped, permuted, concatenated, computed.

None holds data. Each reads the requested rows from its source, with memory of about the size of those rows, and is
thread-safe. It can be pickled and then reads the same files in another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantcli.tensors.tensor import Tensor

Rows = NDArray[np.int64]
"""Row indices."""


@dataclass(frozen=True)
class Renamed(Tensor):
    """A tensor under another name, or with its leading axes reshaped."""

    source: Tensor

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        self.source.read(start, stop, out)


@dataclass(frozen=True)
class Reshaped(Tensor):
    """A tensor reshaped to another row length. Elements keep their order."""

    source: Tensor

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`. The source rows that contain the elements are read whole."""
        first, last = start * self.row_bytes, stop * self.row_bytes
        low = first // self.source.row_bytes
        high = -(-last // self.source.row_bytes)
        buffer = np.empty((high - low, self.source.row_bytes), np.uint8)
        self.source.read(low, high, buffer)
        skipped = first - low * self.source.row_bytes
        out[...] = buffer.reshape(-1)[skipped : skipped + last - first].reshape(out.shape)


@dataclass(frozen=True)
class RearrangedRows(Tensor):
    """A tensor with its leading axis reshaped to several axes, those permuted, and one of them sliced.

    Row `r` of the result is row `offset + strides . unravel(r, extents)` of the source. In a vector each item counts as a
    row.
    """

    source: Tensor
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def source_rows(self, start: int, stop: int) -> Rows:
        """The source row indices of the rows `start:stop`."""
        places = np.unravel_index(np.arange(start, stop), self.extents)
        rows = np.full(stop - start, self.offset, np.int64)
        for place, stride in zip(places, self.strides, strict=True):
            rows += place * stride
        return rows

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        if start == stop:
            return
        if len(self.shape) == 1:
            out.view(self.type.layout)[0] = self.source.load()[self.source_rows(0, self.size)]
        else:
            _read_scattered(self.source, self.source_rows(start, stop), out)


def _read_scattered(source: Tensor, rows: Rows, out: NDArray[np.uint8]) -> None:
    """Read the given rows, all different, in the given order.

    Each run of consecutive rows is one read. Where it is mostly every second row, all of them are read together, since each
    read may be costly for the source.
    """
    order = np.argsort(rows)
    ascending = rows[order]
    edges = [0, *(np.flatnonzero(np.diff(ascending) != 1) + 1).tolist(), len(rows)]
    low, high = int(ascending[0]), int(ascending[-1]) + 1
    if len(edges) > len(rows) // 2 + 1 and high - low <= 2 * len(rows):
        whole = np.empty((high - low, out.shape[1]), np.uint8)
        source.read(low, high, whole)
        np.take(whole, rows - low, axis=0, out=out, mode="clip")
        return
    buffer = np.empty_like(out)
    for first, last in pairwise(edges):
        source.read(int(ascending[first]), int(ascending[last - 1]) + 1, buffer[first:last])
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(rows))
    np.take(buffer, ranks, axis=0, out=out, mode="clip")


@dataclass(frozen=True)
class Assembled(Tensor):
    """A tensor of two or more axes whose parts each have the indices `places` along `axis`, which is not the last."""

    parts: tuple[Tensor, ...]
    axis: int
    places: tuple[range, ...]

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        below = math.prod(self.shape[self.axis + 1 : -1])
        above, inner = np.divmod(np.arange(start, stop), self.shape[self.axis] * below)
        index, inner = np.divmod(inner, below)
        for part, places in zip(self.parts, self.places, strict=True):
            offset, rest = np.divmod(index - places.start, places.step)
            ours = (rest == 0) & (offset >= 0) & (offset < len(places))
            if ours.any():
                rows = (above[ours] * len(places) + offset[ours]) * below + inner[ours]
                found = np.empty((len(rows), out.shape[1]), np.uint8)
                _read_scattered(part, rows, found)
                out[ours] = found


@dataclass(frozen=True)
class Joined(Tensor):
    """Several tensors concatenated along the rows."""

    parts: tuple[Tensor, ...]

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        before = 0
        for part in self.parts:
            first, last = max(start, before), min(stop, before + part.rows)
            if first < last:
                part.read(first - before, last - before, out[first - start : last - start])
            before += part.rows


@dataclass(frozen=True)
class JoinedVectors(Tensor):
    """Vectors concatenated to one vector."""

    parts: tuple[Tensor, ...]

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        position = 0
        for part in self.parts:
            part.read(start, stop, out[:, position : position + part.nbytes])
            position += part.nbytes


@dataclass(frozen=True)
class Computed(Tensor):
    """A tensor with an elementwise function applied, which maps an array to one of the same shape."""

    source: Tensor
    function: Callable[[NDArray[Any]], NDArray[Any]]

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        buffer = np.empty((stop - start, self.source.row_bytes), np.uint8)
        self.source.read(start, stop, buffer)
        out.view(self.type.layout)[...] = self.function(buffer.view(self.source.type.layout))


@dataclass(frozen=True)
class Generated(Tensor):
    """A small tensor that is not in the checkpoint but computed from the hyperparameters."""

    values: NDArray[Any] = field(repr=False, compare=False)

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        out.view(self.type.layout)[...] = self.values.reshape(self.rows, self.row_length)[start:stop]
