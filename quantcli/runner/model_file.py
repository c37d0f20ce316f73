"""What the runner needs of a model file: tensors by name, and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantcli.formats.gguf.spec import Metadata
from quantcli.tensors.tensor import TensorInfo


class ModelFile(Protocol):
    """A model with GGUF tensor names and metadata keys: an open GGUF file, or anything else with this interface."""

    @property
    def path(self) -> Path:
        """The model's path, for error messages."""

    @property
    def metadata(self) -> Metadata:
        """Metadata by GGUF key."""

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
