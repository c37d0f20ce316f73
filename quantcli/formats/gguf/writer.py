"""Write GGUF, byte for byte as llama.cpp does: version 3, little-endian, every tensor padded with zeros to the alignment.

All sizes are known before the first byte is written. So the header is written first, and tensors are written to their
offsets in any order and from several threads. Source: `gguf_write_out` in `gguf.cpp` of llama.cpp.
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from threading import Lock
from types import MappingProxyType, TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import ModelError, OutputError
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
from quantcli.tensors.tensor import TensorInfo

_LONGEST_WRITE: Final = 1 << 30
_NAME_SHOWN: Final = 60
"""Characters of the target's name in that of the temporary file: a file name has at most 255 bytes."""

_REASONS: Final[Mapping[int, tuple[str, str | None]]] = MappingProxyType(
    {
        errno.ENOSPC: ("no space left on the disk", "free some space, or choose another place"),
        errno.EDQUOT: ("the disk quota is exceeded", "free some space, or choose another place"),
        errno.EFBIG: ("the file would be larger than this file system allows", "choose another place"),
        errno.EACCES: ("no permission to write there", None),
        errno.EPERM: ("no permission to write there", None),
        errno.EROFS: ("the file system is read-only", "choose another place"),
        errno.ENOENT: ("the directory does not exist", "create the directory first"),
        errno.ENOTDIR: ("the directory does not exist", "create the directory first"),
        errno.EMFILE: ("too many files are open", "write fewer at once, or raise the limit (`ulimit -n`)"),
    }
)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CANNOT_RESERVE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV})


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
    parts += (_encode_entry(key, field) for key, field in metadata.items())
    parts += (_encode_tensor(info, offset, every=every_dimension) for info, offset in zip(tensors, offsets, strict=True))
    header = b"".join(parts)
    header = header.ljust(align(len(header), alignment), b"\0")
    return Layout(header, tuple(len(header) + offset for offset in offsets), len(header) + position)


@dataclass(frozen=True)
class Shard:
    """An output file: a whole model or one shard of it. `file_bytes` includes the metadata."""

    path: Path
    tensors: int
    file_bytes: int


class TensorWriter(AbstractContextManager[Any], Protocol):
    """A context manager that tensors of a model are written to: one file, or several shards."""

    @property
    def shards(self) -> Sequence[Shard]:
        """The files, in the order of their tensors."""
        ...

    def write(self, index: int, offset: int, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """Put `data` at byte `offset` of tensor `index`. Safe to call from several threads at once."""
        ...


class GGUFWriter:
    """Writes one GGUF file; a context manager.

    On entry the header is written to a hidden temporary file beside the target, which gets its full size. `write` fills the
    tensors. On leaving without an exception the file is flushed to the disk and renamed to `path`. After an exception,
    Ctrl-C included, the temporary file is removed, and a file that was at `path` is unchanged.

    If `path` is a symbolic link, its target is written. `general.alignment` in `metadata` is applied. Tensors are in the
    file in the order of `tensors`. `every_dimension` is that of `make_layout`.

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
    ) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self._tensors = tuple(tensors)
        self._layout = make_layout(metadata, self._tensors, every_dimension=every_dimension)
        self._target = Path(os.path.realpath(self.path))
        self._temporary = self._target.with_name(f".{self._target.name[:_NAME_SHOWN]}.{secrets.token_hex(4)}.part")
        self._descriptor = -1
        self._completed: os.stat_result | None = None
        self._written = [0] * len(self._tensors)
        self._lock = Lock()

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self._layout.file_bytes

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
        with self._reporting():
            self._write_at(view, self._layout.offsets[index] + offset)
        with self._lock:
            self._written[index] += len(view)

    def __enter__(self) -> Self:
        self._check_target()
        try:
            with self._reporting():
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
                self._descriptor = os.open(self._temporary, flags, 0o666)
                _reserve(self._descriptor, self.file_bytes)
                self._write_at(memoryview(self._layout.header), 0)
        except BaseException:
            self.discard()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.complete()
                self.publish()
        finally:
            self.discard()

    # The steps of `__exit__`, for a writer of several files that appear together.

    def complete(self) -> None:
        """Check that every tensor was written, and flush the temporary file to the disk."""
        for info, written in zip(self._tensors, self._written, strict=True):
            if written != info.nbytes:
                raise ValueError(f"{info.name}: {written} of {info.nbytes} bytes were written")
        with self._reporting():
            os.fsync(self._descriptor)
            self._completed = os.fstat(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def publish(self) -> None:
        """Rename the complete file to its path."""
        with self._reporting():
            self._check_target()
            self._temporary.replace(self._target)
            _sync_directory(self._target.parent)

    def withdraw(self) -> None:
        """Remove the file from its path again, if `publish` has renamed it."""
        with suppress(FileNotFoundError):
            if self._completed and os.path.samestat(self._completed, self._target.stat()):
                self._target.unlink()

    def discard(self) -> None:
        """Remove the temporary file, if there is one."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        # After the rename, or if the directory was deleted, there is nothing to remove. `exists` is asked first, since a
        # read-only file system refuses even to remove a missing file.
        with suppress(FileNotFoundError, NotADirectoryError):
            if self._temporary.exists():
                self._temporary.unlink()

    def _check_target(self) -> None:
        if not self._target.exists():
            return
        if not self._target.is_file():
            kind = "a directory" if self._target.is_dir() else "not a regular file"
            raise OutputError(f"{self.path}: expected a regular file or none, found {kind}")
        if not self.overwrite:
            raise OutputError(f"{self.path}: the file exists", hint="--overwrite replaces it")

    def _write_at(self, view: memoryview, position: int) -> None:
        while view:
            count = self._write_some(view[:_LONGEST_WRITE], position)
            view, position = view[count:], position + count

    def _write_some(self, view: memoryview, position: int) -> int:
        if hasattr(os, "pwrite"):  # POSIX's positional write, which needs no lock; Windows has none
            return os.pwrite(self._descriptor, view, position)
        with self._lock:
            os.lseek(self._descriptor, position, os.SEEK_SET)
            return os.write(self._descriptor, view)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn errors of the operating system into an `OutputError` that names the target."""
        try:
            yield
        except OSError as error:
            reason, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), None))
            room = f" ({self.file_bytes} bytes needed)" if error.errno in _FULL else ""
            raise OutputError(f"{self.path}: {reason}{room}", hint=hint) from error


def refuse_overwriting(sources: Iterable[Path], targets: Iterable[Path]) -> None:
    """Refuse to write to a file that is being read.

    Raises:
        OutputError: if one of `targets` is one of `sources`.
    """
    existing = [path for path in targets if path.exists()]
    for source in sources:
        for target in existing:
            if target.samefile(source):
                raise OutputError(f"{target}: the output would replace the model it is made from", hint="choose another -o")


def _reserve(descriptor: int, size: int) -> None:
    """Give a new, empty file its size, and allocate its blocks if the file system can: a full disk shows at once."""
    if hasattr(os, "fstatvfs"):
        statistics = os.fstatvfs(descriptor)
        # Free space is checked first: if a file system cannot allocate, the C library writes to every block instead, and
        # would fill a disk that is too small before it fails.
        if statistics.f_blocks and statistics.f_bavail * statistics.f_frsize < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
    os.truncate(descriptor, size)


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut, if the system can sync a directory."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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


def _encode_entry(key: str, field: Field) -> bytes:
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
    head = struct.pack("<IQ", field.element, len(field.value))
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
