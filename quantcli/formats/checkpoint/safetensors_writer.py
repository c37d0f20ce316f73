"""Write tensors to the safetensors files of a checkpoint, in any order and from several threads.

The header of each file is written first, then each tensor at its place, so that no tensor is held in memory. Names of files
and the index are those of transformers. The safetensors package opens each complete file before it appears.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import OutputError, one_line
from quantcli.formats.output_file import OutputFile
from quantcli.formats.tensor_writer import Shard, TensorWriter
from quantcli.tensors.tensor import TensorInfo

SHARD_BYTES: Final = 5 * 10**9
"""The most tensor data in one file, unless one tensor has more."""

_ALIGNMENT: Final = 8
INDEX: Final = "model.safetensors.index.json"


@dataclass(frozen=True)
class _Part:
    """One file: its tensors, its header, and where each tensor is."""

    file: OutputFile
    tensors: tuple[TensorInfo, ...]
    header: bytes
    offsets: dict[str, int]


class SafetensorsWriter(TensorWriter):
    """Writes all tensors of a checkpoint into a directory; a context manager.

    Args:
        directory: where the files are written.
        tensors: in the order in which they are numbered. Their types are F32, F16 or BF16.
        shard_bytes: the most tensor data in one file.

    Raises:
        OutputError: if the files cannot be written.
    """

    def __init__(self, directory: Path, tensors: Sequence[TensorInfo], shard_bytes: int = SHARD_BYTES) -> None:
        self._directory = directory
        self._tensors = tensors
        groups = _grouped(tensors, shard_bytes)
        self._parts = [_part(directory / _name(number, len(groups)), group) for number, group in enumerate(groups)]
        self._places = {info.name: part for part in self._parts for info in part.tensors}
        self._stack = ExitStack()

    @property
    def shards(self) -> Sequence[Shard]:
        """See `TensorWriter`."""
        return [Shard(part.file.path, len(part.tensors), part.file.file_bytes) for part in self._parts]

    def write(self, index: int, offset: int, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """See `TensorWriter`."""
        info = self._tensors[index]
        part = self._places[info.name]
        view: memoryview = data.data if isinstance(data, np.ndarray) else memoryview(data)
        part.file.write_at(view.cast("B"), part.offsets[info.name] + offset)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(part.file)
                part.file.write_at(memoryview(part.header), 0)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is not None:
            return
        for part in self._parts:
            _check(part)
        if len(self._parts) > 1:
            index = {
                "metadata": {"total_size": sum(info.nbytes for info in self._tensors)},
                "weight_map": {info.name: self._places[info.name].file.path.name for info in self._tensors},
            }
            text = json.dumps(index, indent=2) + "\n"
            (self._directory / INDEX).write_text(text, encoding="utf-8")


def _grouped(tensors: Sequence[TensorInfo], most: int) -> list[list[TensorInfo]]:
    """Tensors in their order, in files of at most `most` bytes."""
    groups: list[list[TensorInfo]] = [[]]
    size = 0
    for info in tensors:
        if groups[-1] and size + info.nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(info)
        size += info.nbytes
    return groups


def _name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


def _part(path: Path, tensors: Sequence[TensorInfo]) -> _Part:
    """A file. Tensors of larger types come first, so that all are aligned, and then in the order of names."""
    ordered = sorted(tensors, key=lambda info: (-info.type.block_bytes, info.name))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for info in ordered:
        offsets = [position, position + info.nbytes]
        entries[info.name] = {"dtype": info.type.name, "shape": list(info.shape), "data_offsets": offsets}
        position += info.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    starts = {info.name: len(header) + entries[info.name]["data_offsets"][0] for info in ordered}
    return _Part(OutputFile(path, len(header) + position), tuple(tensors), header, starts)


def _check(part: _Part) -> None:
    """Open a file with the safetensors package.

    Raises:
        OutputError: if that does not read it, or finds other tensors.
    """
    from safetensors import SafetensorError, safe_open

    path = part.file.path
    try:
        with safe_open(path, framework="numpy") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise OutputError(f"{path}: the safetensors package cannot read it: {one_line(error)}") from error
    if found != {info.name: info.shape for info in part.tensors}:
        raise OutputError(f"{path}: the safetensors package reads other tensors than were written")
