"""Strided tensors: transposed, sliced and expanded views of data in a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import OPAQUE_TYPES
from quantcli.tensors.tensor import FileTensor, opaque_error

SPAN: Final = 1 << 22
"""The most bytes read at once, into a buffer."""

_GAP: Final = 1 << 15
"""Reading a gap of this many bytes costs about as much as a second read call."""


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether a view of `shape` and `strides`, in elements, is C-contiguous."""
    if 0 in shape:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


@dataclass(frozen=True)
class StridedTensor(FileTensor):
    """A tensor whose element `(i, j, ...)` is at `offset + i * strides[0] + j * strides[1] + ...`.

    `strides` are in bytes and not negative. Rows are gathered from spans of at most `SPAN` bytes.
    """

    strides: tuple[int, ...]

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`.

        Raises:
            FormatError: if the file can no longer be read or has changed.
            UnsupportedError: for an element type that GGUF does not have.
        """
        if self.type.name in OPAQUE_TYPES:
            raise opaque_error(self)
        if not out.size:
            return
        elements = out.reshape(-1).view(self.type.layout).reshape(stop - start, self.row_length)
        done = 0
        for position, rows in self._matrices(start, stop):
            self._gather(position, elements[done : done + rows])
            done += rows

    def _matrices(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The rows `start:stop` as matrices: the position in the file and the number of rows of each.

        A matrix ends where the last of the leading axes wraps, since the stride to the next row differs there.
        """
        leading, strides = self.shape[:-1], self.strides[:-1]
        count = leading[-1] if leading else 1
        while start < stop:
            position, rest = self.offset, start
            for size, stride in zip(reversed(leading), reversed(strides), strict=True):
                rest, index = divmod(rest, size)
                position += index * stride
            rows = min(stop - start, count - start % count)
            yield position, rows
            start += rows

    def _gather(self, position: int, out: NDArray[Any]) -> None:
        """Fill the matrix `out` with the elements from byte `position` on.

        The axis with the smaller stride is the inner one, along which elements are close together in the file. Several runs
        along it are read at once if the gaps between them are small.
        """
        width = out.itemsize
        row_stride = self.strides[-2] if len(self.strides) > 1 else 0
        column_stride = self.strides[-1] if self.strides else 0
        if row_stride < column_stride:
            out, outer_stride, inner_stride = out.T, column_stride, row_stride
        else:
            outer_stride, inner_stride = row_stride, column_stride
        outer, inner = out.shape
        run = min(inner, 1 + (SPAN - width) // max(inner_stride, 1))
        run_bytes = (run - 1) * inner_stride + width
        group = 1
        if outer_stride - run_bytes <= _GAP:
            group = min(outer, 1 + (SPAN - run_bytes) // max(outer_stride, 1))
        buffer = np.empty((group - 1) * outer_stride + run_bytes, np.uint8)
        for i in range(0, outer, group):
            for j in range(0, inner, run):
                target = out[i : i + group, j : j + run]
                span = sum((n - 1) * s for n, s in zip(target.shape, (outer_stride, inner_stride), strict=True)) + width
                self.file.read_into(buffer[:span].data, position + i * outer_stride + j * inner_stride)
                target[...] = np.ndarray(target.shape, out.dtype, buffer.data, 0, (outer_stride, inner_stride))
