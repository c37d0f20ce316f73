"""What the runner asks of a file: named tensors and metadata, wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantcli.formats.gguf.spec import Metadata
from quantcli.tensors.tensor import TensorInfo


class ModelFile(Protocol):
    """A model under GGUF's names. An open GGUF file is one; so is anything else that has tensors under those names."""

    @property
    def path(self) -> Path:
        """Where the model lies, for errors."""

    @property
    def metadata(self) -> Metadata:
        """Metadata by their GGUF keys."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name, shape and type of each tensor by its GGUF name."""

    def map(self, tensor: TensorInfo, /) -> NDArray[np.uint8]:
        """The rows of a tensor as stored, uint8 `(rows, row_bytes)`, read-only: a view of a file, or a copy.

        Raises:
            FormatError, UnsupportedError: if the tensor cannot be read.
        """


def metadata_value(file: ModelFile, key: str, default: Any = None) -> Any:
    """The plain value of a metadata key, or `default` where there is none."""
    entry = file.metadata.get(key)
    return default if entry is None else entry.value
