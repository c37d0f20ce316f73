"""A tensor that is somewhere else: a name, a shape, a type, and rows on demand.

Readers return these, transforms wrap these, the converter and the inspector consume these. No row is read before it is
asked for, and none is kept.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantcli.formats.errors import FormatError
from quantcli.kernels.types import BlockType


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without its data.

    `shape` is in NumPy order (the row length last). A tensor is `rows` rows of `row_bytes` bytes in the encoding of `type`:
    the leading axes are flattened.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockType

    @property
    def row_length(self) -> int:
        """Weights in one row."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Rows, the leading axes multiplied."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as stored."""
        return self.type.row_bytes(self.row_length)

    @property
    def size(self) -> int:
        """Weights in the tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor as stored."""
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class Tensor(TensorInfo, ABC):
    """A lazy tensor: its rows are read when they are asked for."""

    @abstractmethod
    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """Copy the encoded rows `start:stop` into `out`, a C-contiguous uint8 array of `(stop - start, row_bytes)`.

        Safe to call from several threads at once.

        Raises:
            FormatError: if the file no longer holds these bytes.
        """

    def load(self) -> NDArray[Any]:
        """The whole tensor as an array: of `type.layout` with `shape` for plain types, `(rows, row_bytes)` uint8 for
        packed ones. For small tensors and tests; the pipeline reads row by row."""
        out = np.empty((self.rows, self.row_bytes), np.uint8)
        self.read(0, self.rows, out)
        return out if self.type.is_quantized else out.reshape(-1).view(self.type.layout).reshape(self.shape)


@dataclass(frozen=True)
class StoredTensor(Tensor):
    """A tensor whose rows lie one after another in a file, from byte `offset`."""

    path: str
    offset: int
    descriptor: int
    """An open file descriptor, kept open by the reader that made this tensor."""

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        view = memoryview(out).cast("B")
        position = self.offset + start * self.row_bytes
        while view:
            count = os.preadv(self.descriptor, [view], position)
            if count == 0:
                raise FormatError(self.path, f"tensor {self.name!r}: the file ends before its data", offset=position)
            view, position = view[count:], position + count
