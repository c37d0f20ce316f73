"""Lazy tensors: a name, a shape, a type, and rows that are read on demand and not cached.

Readers return lazy tensors, transforms wrap them, and the converter and the inspector use them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
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
    """The name, shape and type of a tensor.

    `shape` is in NumPy order, the row length last. The leading axes are flattened: a tensor is `rows` rows of `row_bytes`
    bytes in the encoding of `type`.
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
        """The number of rows: the product of the leading axes."""
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
        """Read the encoded rows `start:stop` into `out`, C-contiguous uint8 `(stop - start, row_bytes)`.

        Safe to call from several threads at once.

        Raises:
            FormatError: if the file can no longer be read or has changed.
            UnsupportedError: if GGUF does not have the tensor's encoding.
        """

    def load(self) -> NDArray[Any]:
        """The whole tensor: `shape` of dtype `type.layout` for plain types, uint8 `(rows, row_bytes)` for packed types.

        For small tensors and tests. The conversion pipeline reads row by row.
        """
        import numpy as np

        out = np.empty((self.rows, self.row_bytes), np.uint8)
        self.read(0, self.rows, out)
        return out if self.type.is_quantized else out.reshape(-1).view(self.type.layout).reshape(self.shape)


def made_of(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor and all tensors that it is computed from."""
    yield tensor
    for field in fields(tensor):
        value = getattr(tensor, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Tensor):
                yield from made_of(item)


@dataclass(frozen=True)
class FileTensor(Tensor):
    """A tensor whose data are in `file`, from byte `offset` on."""

    file: DataFile
    offset: int


def files_of(tensors: Iterable[Tensor]) -> tuple[DataFile, ...]:
    """The files of those tensors that are in one, each once."""
    return tuple(dict.fromkeys(tensor.file for tensor in tensors if isinstance(tensor, FileTensor)))


@dataclass(frozen=True)
class StoredTensor(FileTensor):
    """A tensor whose rows are contiguous in a file."""

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`. This is one read of the file."""
        if out.size:  # an empty memoryview cannot be cast
            self.file.read_into(out.data.cast("B"), self.offset + start * self.row_bytes)


@dataclass(frozen=True)
class OpaqueTensor(StoredTensor):
    """A stored tensor in an encoding that GGUF does not have. `type` is one of `OPAQUE_TYPES`.

    A checkpoint may have such tensors that are not used, such as old attention masks in BOOL or U8. So opening one is no
    error, but reading one is. A decoder of such an encoding reads the bytes through `encoded`.
    """

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """Refuse to read.

        Raises:
            UnsupportedError: always.
        """
        raise opaque_error(self)

    def encoded(self) -> StoredTensor:
        """The same rows as raw bytes: a tensor of type I8 with the row length `row_bytes`."""
        return StoredTensor(self.name, (self.rows, self.row_bytes), TYPES["I8"], self.file, self.offset)


def opaque_error(tensor: FileTensor) -> UnsupportedError:
    """The error that reading a tensor of one of `OPAQUE_TYPES` raises."""
    return UnsupportedError(
        f"{tensor.file.path}: tensor {tensor.name!r} is stored as {tensor.type.name}, which cannot be converted",
        hint="Use a checkpoint in bfloat16, float16 or float32.",
    )


MAX_DIMENSIONS: Final = 64
"""The most dimensions of a checkpoint's tensor: NumPy's limit."""

MAX_COUNT: Final = (1 << 63) - 1
"""The largest size of a dimension: the limit of all formats and libraries here."""


def stored_tensor(name: str, shape: tuple[int, ...], type: BlockType, file: DataFile, offset: int) -> StoredTensor:
    """A tensor of any of `ELEMENT_TYPES`, contiguous in `file` from `offset` on."""
    return (OpaqueTensor if type.name in OPAQUE_TYPES else StoredTensor)(name, shape, type, file, offset)
