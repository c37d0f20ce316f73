"""A tensor that is somewhere else: a name, a shape, a type, and rows on demand.

Readers return these, transforms wrap these, the converter and the inspector consume these. No row is read before it is
asked for, and none is kept.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from quantcli.core.block_types import OPAQUE_TYPES, TYPES, BlockType
from quantcli.core.errors import UnsupportedError
from quantcli.tensors.files import DataFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
            UnsupportedError: if the tensor's encoding is none that GGUF has.
        """

    def load(self) -> NDArray[Any]:
        """The whole tensor as an array: of `type.layout` with `shape` for plain types, `(rows, row_bytes)` uint8 for
        packed ones. For small tensors and tests; the pipeline reads row by row."""
        import numpy as np

        out = np.empty((self.rows, self.row_bytes), np.uint8)
        self.read(0, self.rows, out)
        return out if self.type.is_quantized else out.reshape(-1).view(self.type.layout).reshape(self.shape)


def made_of(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor and, if it is a view of others, those and what they are made of."""
    yield tensor
    for field in fields(tensor):
        value = getattr(tensor, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Tensor):
                yield from made_of(item)


@dataclass(frozen=True)
class FileTensor(Tensor):
    """A tensor whose data lie in `file`, the first of them at byte `offset`."""

    file: DataFile
    offset: int


@dataclass(frozen=True)
class StoredTensor(FileTensor):
    """A tensor whose rows lie one after another in a file."""

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """Copy rows, as every tensor does: one read of the file."""
        if out.size:  # a view of nothing cannot be cast
            self.file.read_into(out.data.cast("B"), self.offset + start * self.row_bytes)


@dataclass(frozen=True)
class OpaqueTensor(StoredTensor):
    """A stored tensor in an encoding that GGUF does not have; `type` is one of `OPAQUE_TYPES`.

    A checkpoint may hold such tensors without needing them (old attention masks are BOOL or U8), so finding one is no
    error. Reading one is. What decodes such an encoding takes the bytes with `encoded`.
    """

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """Refuse.

        Raises:
            UnsupportedError: always.
        """
        raise opaque_error(self)

    def encoded(self) -> StoredTensor:
        """The same rows as bare bytes: a tensor of type I8 with `row_bytes` for its row length."""
        return StoredTensor(self.name, (self.rows, self.row_bytes), TYPES["I8"], self.file, self.offset)


def opaque_error(tensor: FileTensor) -> UnsupportedError:
    """What reading a tensor of one of `OPAQUE_TYPES` raises."""
    return UnsupportedError(
        f"{tensor.file.path}: tensor {tensor.name!r} is stored as {tensor.type.name}, which cannot be converted",
        hint="Use a checkpoint in bfloat16, float16 or float32.",
    )


MAX_DIMENSIONS: Final = 64
"""Dimensions a checkpoint's tensor may have; NumPy's limit."""

MAX_COUNT: Final = (1 << 63) - 1
"""The largest size of a dimension: what every format and library here can count to."""


def stored_tensor(name: str, shape: tuple[int, ...], type: BlockType, file: DataFile, offset: int) -> StoredTensor:
    """A tensor in one piece, of any of `ELEMENT_TYPES`."""
    return (OpaqueTensor if type.name in OPAQUE_TYPES else StoredTensor)(name, shape, type, file, offset)
