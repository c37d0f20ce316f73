"""What tensors of a model are written to, in any file format."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True)
class Shard:
    """An output file: a whole model or one shard of it. `file_bytes` includes the metadata."""

    path: Path
    tensors: int
    file_bytes: int


class TensorWriter(AbstractContextManager[Any], Protocol):
    """A context manager that tensors of a model are written to: one file, or several shards. By default nothing of what an
    interrupted run has written is kept."""

    @property
    def shards(self) -> Sequence[Shard]:
        """The files, in the order of their tensors."""
        ...

    def write(self, index: int, offset: int, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """Put `data` at byte `offset` of tensor `index`. Safe to call from several threads at once."""
        ...

    def holds_rows(self, index: int, offset: int, count: int) -> bool:
        """Whether an interrupted run has written these bytes of tensor `index`. They count as written then."""
        return False

    def forget(self) -> None:
        """End that a later run may continue. Called when all files that were written together have appeared."""
        return
