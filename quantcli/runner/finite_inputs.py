"""Finds where a model's activations stop being numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import GenerationError


@dataclass(frozen=True)
class FiniteInputs:
    """An observer (`weights.Observer`) that stops a forward pass at the first product whose inputs are not finite."""

    path: Path

    def __call__(self, tensor: str, rows: NDArray[np.float32], index: int | None, /) -> None:
        """See `weights.Observer`.

        Raises:
            GenerationError: naming the product, and the token and column of the first such input.
        """
        bad = ~np.isfinite(rows)
        if bad.any():
            token, column = np.argwhere(bad)[0].tolist()
            of = "" if index is None else f", matrix {index}"
            where = f"{rows[token, column]} at token {token}, column {column}"
            raise GenerationError(f"{self.path}: the first inputs that are not finite are those of {tensor}{of}: {where}")
