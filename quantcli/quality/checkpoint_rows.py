"""Which rows of a checkpoint's tensors become the rows of GGUF tensors.

An architecture's transforms permute, split and join rows. They are applied to tensors whose rows hold their own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.architectures.loader import find_architecture
from quantcli.core.block_types import block_type
from quantcli.tensors.tensor import Tensor

_CHUNK: Final = 1 << 22
"""Elements that are read at once."""

_MOST: Final = 1 << 24
"""float32 holds the integers up to here."""


@dataclass(frozen=True)
class _NumberedRows(Tensor):
    """A float32 tensor whose elements are the numbers of their rows, counted from `first` on, or NaN."""

    first: float

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        numbers = np.arange(start, stop, dtype=np.float32) + np.float32(self.first)
        out.view(np.float32)[...] = numbers[:, None]


def checkpoint_rows(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    counted: Callable[[str], bool],
    wanted: Callable[[str], bool],
    architecture_file: Path | None = None,
) -> Iterator[tuple[str, str, NDArray[np.int64]]]:
    """The matrices of a GGUF file, each with the name of the checkpoint's tensor that has its rows, and their numbers.

    A matrix is left out if its rows are from several tensors, or are computed.

    config   the content of config.json
    shapes   the checkpoint's tensors
    counted  whether a checkpoint's tensor may be such a tensor
    wanted   whether a GGUF tensor is asked for

    Raises:
        UnsupportedError, ModelError: as the architecture's mapping.
    """
    float32 = block_type("F32")
    names, firsts, total = [], [], 0
    checkpoint: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        rows = counted(name) and len(shape) > 1
        checkpoint[name] = _NumberedRows(name, shape, float32, total if rows else math.nan)
        if rows:
            names.append(name)
            firsts.append(total)
            total += checkpoint[name].rows
    if not names or total > _MOST:
        return
    for tensor in find_architecture(config, architecture_file).tensors(checkpoint, config):
        if len(tensor.shape) != 2 or tensor.type is not float32 or not wanted(tensor.name):
            continue
        numbers = _row_numbers(tensor)
        if numbers is None:
            continue
        number = int(np.searchsorted(firsts, numbers[0], side="right")) - 1
        within = numbers - firsts[number]
        source = checkpoint[names[number]]
        if within.min() >= 0 and within.max() < source.rows and source.row_length == tensor.row_length:
            yield tensor.name, source.name, within


def _row_numbers(tensor: Tensor) -> NDArray[np.int64] | None:
    """The number that all elements of each row are; None if they differ, as NaN does from itself."""
    step, found = max(1, _CHUNK // tensor.row_length), []
    for start in range(0, tensor.rows, step):
        stop = min(start + step, tensor.rows)
        raw = np.empty((stop - start, tensor.row_bytes), np.uint8)
        tensor.read(start, stop, raw)
        values = raw.view(np.float32)
        if (values != values[:, :1]).any():
            return None
        found.append(values[:, 0].astype(np.int64))
    numbers: NDArray[np.int64] = np.concatenate(found)
    return numbers
