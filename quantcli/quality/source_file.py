"""Run a checkpoint without converting it to a GGUF file first: a conversion source as the runner's `ModelFile`."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.conversion.source import Source
from quantcli.formats.gguf.spec import Metadata
from quantcli.tensors.derived import Renamed
from quantcli.tensors.files import InputFile
from quantcli.tensors.tensor import StoredTensor, Tensor, TensorInfo

ALIGNMENT: Final = 8
"""A tensor is mapped if its offset is a multiple of so many bytes, as kernels need it."""


@dataclass(frozen=True, eq=False)
class SourceFile:
    """The runner's `ModelFile` for the tensors and metadata of an open source. Tensors have the types of the source.

    Tensors that are stored in a local file in the layout of matrix products are memory-mapped. Tensors that are computed
    (permuted, stacked, dequantized) or remote are read into memory.
    """

    path: Path
    metadata: Metadata
    tensors: dict[str, Tensor]
    mappings: dict[InputFile, mmap.mmap] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, source: Source) -> SourceFile:
        """The file of a source as it is."""
        return cls(source.path, source.metadata, source.tensors)

    def map(self, tensor: TensorInfo, /) -> NDArray[np.uint8]:
        """The rows of a tensor, uint8 `(rows, row_bytes)`, read-only. They stay valid after the source is closed.

        Raises:
            KeyError: for a tensor of another source.
            FormatError, UnsupportedError: if the tensor cannot be read.
        """
        lazy = stored = self.tensors[tensor.name]
        while isinstance(stored, Renamed):
            stored = stored.source
        # Not `isinstance`: subclasses override `read`.
        plain = type(stored) is StoredTensor and stored.nbytes > 0 and stored.offset % ALIGNMENT == 0
        if plain and isinstance(stored, StoredTensor) and isinstance(stored.file, InputFile):
            flat = np.frombuffer(self._mapping(stored.file), np.uint8, stored.nbytes, stored.offset)
            return flat.reshape(lazy.rows, lazy.row_bytes)
        rows = np.empty((lazy.rows, lazy.row_bytes), np.uint8)
        lazy.read(0, lazy.rows, rows)
        rows.flags.writeable = False
        return rows

    def _mapping(self, file: InputFile) -> mmap.mmap:
        if file not in self.mappings:
            self.mappings[file] = mmap.mmap(file.fileno(), file.size, access=mmap.ACCESS_READ)
        return self.mappings[file]


def identity(file: SourceFile) -> str:
    """A digest that tells models apart: of the names, types and shapes of the tensors, and of each one's first row."""
    digest = hashlib.sha256()
    for name, tensor in sorted(file.tensors.items()):
        digest.update(f"{name} {tensor.type.name} {tensor.shape}\n".encode())
        row = np.empty((min(1, tensor.rows), tensor.row_bytes), np.uint8)
        tensor.read(0, len(row), row)
        digest.update(row.tobytes())
    return digest.hexdigest()
