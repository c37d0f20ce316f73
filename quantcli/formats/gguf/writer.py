"""Write GGUF, byte for byte as llama.cpp does: version 3, little-endian, every tensor padded with zeros to the alignment.

All sizes are known before the first byte is written. So the header is written first, and tensors are written to their
offsets in any order and from several threads. Source: `gguf_write_out` in `gguf.cpp` of llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import ModelError
from quantcli.formats.gguf.arrays import PackedStrings
from quantcli.formats.gguf.spec import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_NAME_LENGTH,
    NUMBER_FORMATS,
    VERSION,
    Field,
    ValueType,
    align,
    encode_string,
    is_alignment,
)
from quantcli.formats.journal import Subject, digest
from quantcli.formats.output_file import OutputFile
from quantcli.formats.tensor_writer import Shard
from quantcli.tensors.tensor import TensorInfo


@dataclass(frozen=True)
class Layout:
    """The layout of a file: its header with padding, the offset of each tensor, the size."""

    header: bytes
    offsets: tuple[int, ...]
    file_bytes: int


def make_layout(
    metadata: Mapping[str, Field], tensors: Sequence[TensorInfo], *, every_dimension: bool = False
) -> Layout:
    """Compute the layout of a file. With `every_dimension`, leading dimensions of one are written too.

    Raises:
        ModelError: for tensors or metadata that GGUF cannot hold: a name that is too long or used twice, too many
            dimensions, rows that do not divide into blocks, a metadata value out of range for its type.
    """
    alignment = _alignment(metadata)
    offsets: list[int] = []
    position = 0
    for info in tensors:
        _check_tensor(info)
        offsets.append(position)
        position += align(info.nbytes, alignment)
    names = [info.name for info in tensors]
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ModelError(f"two tensors are called {twice!r}")
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    parts += (encode_entry(key, field) for key, field in metadata.items())
    parts += (_encode_tensor(info, offset, every=every_dimension) for info, offset in zip(tensors, offsets, strict=True))
    header = b"".join(parts)
    header = header.ljust(align(len(header), alignment), b"\0")
    return Layout(header, tuple(len(header) + offset for offset in offsets), len(header) + position)


class GGUFWriter(OutputFile):
    """Writes one GGUF file; a context manager, as `OutputFile` says.

    On entry the header is written. `write` fills the tensors. `general.alignment` in `metadata` is applied. Tensors are in
    the file in the order of `tensors`. `every_dimension` is that of `make_layout`, `resume` that of `OutputFile`.

    Raises:
        ModelError: when created, for tensors or metadata that GGUF cannot hold (see `make_layout`).
        OutputError: on entry and later, if the target exists (unless `overwrite`), its directory does not, or the disk
            is full.
        ValueError: on leaving, if some tensor was not written in full.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        metadata: Mapping[str, Field],
        tensors: Sequence[TensorInfo],
        *,
        overwrite: bool = False,
        every_dimension: bool = False,
        resume: Subject | None = None,
    ) -> None:
        self._tensors = tuple(tensors)
        self._layout = make_layout(metadata, self._tensors, every_dimension=every_dimension)
        self._written = [0] * len(self._tensors)
        if resume is not None:
            resume = [*resume, ("tensors, types or metadata", digest(self._layout.header))]
        super().__init__(path, self._layout.file_bytes, overwrite=overwrite, resume=resume)

    @property
    def shards(self) -> tuple[Shard]:
        """The one file that is written."""
        return (Shard(self.path, len(self._tensors), self.file_bytes),)

    def write(self, index: int, offset: int, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """Put `data`, contiguous bytes, at byte `offset` of tensor `index`. Safe to call from several threads at once.

        Raises:
            OutputError: if the disk is full or fails.
            ValueError: if the data exceed the tensor.
        """
        view = np.frombuffer(data, np.uint8).data
        info = self._tensors[index]
        if offset < 0 or offset + len(view) > info.nbytes:
            raise ValueError(f"{info.name}: bytes {offset} to {offset + len(view)} of a tensor of {info.nbytes}")
        self.write_at(view, self._layout.offsets[index] + offset)
        with self._lock:
            self._written[index] += len(view)

    def holds_rows(self, index: int, offset: int, count: int) -> bool:
        """See `TensorWriter.holds_rows`."""
        held = self.holds(self._layout.offsets[index] + offset, count)
        if held:
            with self._lock:
                self._written[index] += count
        return held

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            if not self.holds(0, len(self._layout.header)):
                self.write_at(memoryview(self._layout.header), 0)
        except BaseException:
            self.discard()
            raise
        return self

    def complete(self) -> None:
        """Check that every tensor was written, and flush the temporary file to the disk."""
        for info, written in zip(self._tensors, self._written, strict=True):
            if written != info.nbytes:
                raise ValueError(f"{info.name}: {written} of {info.nbytes} bytes were written")
        super().complete()


def _alignment(metadata: Mapping[str, Field]) -> int:
    entry = metadata.get(ALIGNMENT_KEY)
    if entry is None:
        return DEFAULT_ALIGNMENT
    if entry.type != ValueType.UINT32 or not is_alignment(entry.value):
        raise ModelError(f"{ALIGNMENT_KEY} is {entry.value!r} ({entry.type.name}), expected a power of two (UINT32)")
    return int(entry.value)


def _check_tensor(info: TensorInfo) -> None:
    if len(encode_string(info.name)) > MAX_NAME_LENGTH:
        raise ModelError(f"the tensor name {info.name!r} is longer than the {MAX_NAME_LENGTH} bytes GGUF allows")
    if len(info.shape) > MAX_DIMENSIONS:
        raise ModelError(f"tensor {info.name!r} has {len(info.shape)} dimensions, GGUF allows {MAX_DIMENSIONS}")
    if info.row_length % info.type.block_length:
        raise ModelError(
            f"tensor {info.name!r} has rows of {info.row_length}, "
            f"not divisible by the {info.type.name} block of {info.type.block_length}"
        )


def _encode_tensor(info: TensorInfo, offset: int, *, every: bool) -> bytes:
    dimensions = list(reversed(info.shape)) or [1]
    # ggml has four lengths per tensor and writes them up to the last one that is not 1.
    while not every and len(dimensions) > 1 and dimensions[-1] == 1:
        dimensions.pop()
    count = len(dimensions)
    return _encode_text(info.name) + struct.pack(f"<I{count}QIQ", count, *dimensions, info.type.id, offset)


def encode_entry(key: str, field: Field) -> bytes:
    """The bytes of a metadata entry.

    Raises:
        ModelError: for a value that its type cannot hold.
    """
    try:
        return _encode_text(key) + struct.pack("<I", field.type) + _encode_value(field)
    except (struct.error, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"metadata key {key!r} cannot be written as {field.type.name}: {error}") from error


def _encode_value(field: Field) -> bytes:
    if field.type == ValueType.STRING:
        return _encode_text(field.value)
    if field.type != ValueType.ARRAY:
        return struct.pack(NUMBER_FORMATS[field.type], field.value)
    if field.element is None or field.element == ValueType.ARRAY:
        raise ValueError("an array needs the type of its elements, which cannot be an array")
    head = struct.pack("<IQ", field.element, field.count)
    if isinstance(field.content, PackedStrings):
        return head + field.content.data
    if field.element == ValueType.STRING:
        return head + b"".join(map(_encode_text, field.value))
    return head + _encode_numbers(field.value, np.dtype(NUMBER_FORMATS[field.element]))


def _encode_numbers(values: Any, dtype: np.dtype[Any]) -> bytes:
    """A flat array in `dtype`.

    Raises:
        ValueError: if integers would change, or the values are not a flat list of numbers.
    """
    given = np.asarray(values) if len(values) else np.empty(0, dtype)
    if given.ndim != 1 or given.dtype.kind not in "biuf":
        raise ValueError(f"expected a flat array of numbers, found {given.dtype} of shape {given.shape}")
    packed = given.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(packed, given):
        raise ValueError(f"expected numbers that {dtype} can hold")
    return packed.tobytes()


def _encode_text(value: str) -> bytes:
    data = encode_string(value)
    return struct.pack("<Q", len(data)) + data
