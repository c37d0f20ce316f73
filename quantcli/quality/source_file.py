"""A conversion's source as the runner takes a file: a checkpoint is run without writing a GGUF file of it first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantcli.conversion.source import Source
from quantcli.formats.gguf_spec import Metadata
from quantcli.formats.tensor import Tensor, TensorInfo


@dataclass(frozen=True, eq=False)
class SourceFile:
    """The runner's `ModelFile` made of an open source. Tensors are read whole, in the types the source has them in."""

    source: Source

    @property
    def path(self) -> Path:
        """Where the checkpoint lies."""
        return self.source.path

    @property
    def metadata(self) -> Metadata:
        """Metadata by their GGUF keys."""
        return self.source.metadata

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The lazy tensors by their GGUF names."""
        return self.source.tensors

    def map(self, tensor: TensorInfo, /) -> NDArray[np.uint8]:
        """The rows of a tensor, uint8 `(rows, row_bytes)`, in memory.

        Raises:
            KeyError: for a tensor of another source.
            FormatError, UnsupportedError: if the tensor cannot be read.
        """
        lazy = self.source.tensors[tensor.name]
        rows = np.empty((lazy.rows, lazy.row_bytes), np.uint8)
        lazy.read(0, lazy.rows, rows)
        rows.flags.writeable = False
        return rows
