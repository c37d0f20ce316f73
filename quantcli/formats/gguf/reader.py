"""Read GGUF: a header of typed metadata and tensor descriptions, then the tensors, each at a multiple of the alignment.

Versions 2 and 3, little-endian. The header is validated before it is used: every count, length and offset is compared with
the size of the file before memory is allocated. Source: the GGUF specification (`docs/gguf.md` of ggml), and `gguf.cpp` of
llama.cpp for deviations that real files have.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from os import PathLike
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from quantcli.core.block_types import TYPES_BY_ID
from quantcli.core.display import binary_size
from quantcli.core.errors import FormatError, UnsupportedError
from quantcli.core.listing import listed
from quantcli.formats.gguf.arrays import LENGTH, PackedNumbers, PackedStrings, string_bounds
from quantcli.formats.gguf.removed import REMOVED_TYPES, RemovedTensor
from quantcli.formats.gguf.shards import COUNT_KEY, NUMBER_KEY, TENSORS_KEY, first_of, shard_path, shard_paths, shard_prefix
from quantcli.formats.gguf.spec import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_NAME_LENGTH,
    NUMBER_FORMATS,
    Field,
    Metadata,
    ValueType,
    align,
    decode_string,
    is_alignment,
)
from quantcli.formats.leftovers import find_leftovers, label_of
from quantcli.tensors.files import InputFile
from quantcli.tensors.tensor import StoredTensor, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

READ_VERSIONS: Final = (2, 3)

_MAX_STRING: Final = 1 << 30  # bytes; this and the next as in gguf.cpp
_MAX_ELEMENTS: Final = 1 << 30
_MAX_DIMENSION: Final = (1 << 63) - 1
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_HEADER_BYTES: Final = 24
_SMALLEST_ENTRY: Final = 8 + 1 + 4 + 1  # a key of one byte, a value of one
_SMALLEST_TENSOR: Final = 8 + 4 + 4 + 8  # no name, no dimension
_NUMBERS: Final = MappingProxyType({kind: struct.Struct(form) for kind, form in NUMBER_FORMATS.items()})

_JOINED: Final = "shards of a model cannot be joined with cat: restore them, and use `quantize merge`"
_MIXED: Final = "the shards may be of different models, or a copy is incomplete: copy or download all of them again"
_BOOLEANS: Final = bytes([0] + [1] * 255)
"""Every byte as a boolean: as in gguf.cpp, all but 0 are true."""

_PREVIEW: Final = "with --dry-run it shows the tensors and their planned types"
_CONVERT: Final = "`quantize convert` makes a GGUF file from it"
_FOREIGN: Final = (
    (b"PK\x03\x04", 0, "a zip archive, perhaps a PyTorch checkpoint", _CONVERT),
    (b"\x80\x02", 0, "a pickle, perhaps a PyTorch checkpoint", _CONVERT),
    (b"{", 8, "a safetensors file", f"{_CONVERT}; {_PREVIEW}"),
    (b"<", 0, "a web page", "download the file itself, not the page about it"),
    (b"lmgg", 0, "a file in a format before GGUF (ggml)", "convert the original model again"),
    (b"fmgg", 0, "a file in a format before GGUF (ggmf)", "convert the original model again"),
    (b"tjgg", 0, "a file in a format before GGUF (ggjt)", "convert the original model again"),
)
"""Other formats: their magic bytes, the offset of these, the name of the format, the hint."""


@dataclass(frozen=True, eq=False, repr=False)
class GGUFFile:
    """An open GGUF file: its header and its lazy tensors. Also all shards of a split model as one file.

    metadata, tensors   in the order of the file
    data_offset         the byte that tensor offsets are relative to
    file_bytes          the size of the file

    For a split model, `tensors` are those of all shards, each in its own file, and `file_bytes` is the size of all shards.
    All else is that of the first shard. Use it as a context manager, or `close` it.
    """

    path: Path
    version: int
    alignment: int
    metadata: Metadata
    tensors: dict[str, StoredTensor]
    file_bytes: int
    data_offset: int
    _files: tuple[InputFile, ...] = field(repr=False)
    _mappings: dict[InputFile, mmap.mmap] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"<GGUF file {self.path}: {self.architecture}, {len(self.tensors)} tensors, {binary_size(self.file_bytes)}>"

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key, or `default` without it."""
        entry = self.metadata.get(key)
        return default if entry is None else entry.value

    @property
    def architecture(self) -> str | None:
        """`general.architecture`, the prefix of the hyperparameters' keys; None if it is missing."""
        return name if isinstance(name := self.get("general.architecture"), str) else None

    @property
    def split(self) -> tuple[int, int]:
        """The number of the shard, from one, and the number of shards; (1, 1) for a whole model."""
        number, count = self.get(NUMBER_KEY, 0), self.get(COUNT_KEY, 1)
        return (number + 1, count) if isinstance(number, int) and isinstance(count, int) else (1, 1)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file, or the files of all shards."""
        return tuple(file.path for file in self._files)

    def map(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        """The rows of a tensor as a read-only memory map, uint8 `(rows, row_bytes)`.

        The array stays valid after `close`. Pages are read when they are accessed.

        Raises:
            KeyError: for a tensor of another file.
            UnsupportedError: for one of a type that ggml has removed.
        """
        import numpy as np

        stored = self.tensors[tensor.name]
        if isinstance(stored, RemovedTensor):
            raise stored.refusal()
        if not stored.nbytes:
            return np.empty((stored.rows, stored.row_bytes), np.uint8)
        file = stored.file
        assert isinstance(file, InputFile)  # `open_gguf` opens no other
        if file not in self._mappings:
            self._mappings[file] = _map_file(file)
        flat = np.frombuffer(self._mappings[file], np.uint8, stored.nbytes, stored.offset)
        return flat.reshape(stored.rows, stored.row_bytes)

    def close(self) -> None:
        """Close the descriptors. Arrays from `map` keep their memory maps alive."""
        self._mappings.clear()
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_gguf(path: str | PathLike[str], *, allow_shard: bool = False) -> GGUFFile:
    """Read and check the header of a GGUF file. No tensor data are read.

    A split model is given by its first shard, `NAME-00001-of-00003.gguf`, and read as one file. A later shard is refused,
    since the metadata are in the first. With `allow_shard` it is opened alone.

    Raises:
        FormatError: if the file is missing, truncated, not GGUF, or inconsistent, with the byte offset; if a shard is
            missing, or the shards are inconsistent.
        UnsupportedError: for a big-endian file, a version other than 2 and 3, or a later shard of a split model.
    """
    _expect_first_shard(Path(path))
    opened = _open_file(path)
    shard, shards = opened.split
    if shards <= 1 or (shard > 1 and allow_shard):
        return opened
    # Closed shards are opened again when they are read: there may be more shards than a process may have open files.
    opened.close()
    if shard == 1:
        return _join([opened, *_open_others(opened.path, shards)])
    first = shard_path(shard_prefix(opened.path), 1, shards)
    raise UnsupportedError(
        f"{opened.path}: shard {shard} of {shards} of a split model, expected the first one",
        hint=f"use {first}" if first.exists() else "the first shard is named NAME-00001-of-....gguf",
    )


def _expect_first_shard(path: Path) -> None:
    """Say what a first shard that is missing beside others means.

    Raises:
        FormatError: if it is missing, and others are there.
    """
    count = first_of(path.name)
    if count is None or path.exists():
        return
    prefix = shard_prefix(path)
    with suppress(OSError):
        if any(leftover.restored for leftover in find_leftovers(path.parent, label_of(prefix.name).__eq__)):
            what = f"the first of {count} shards is missing, since a run that replaced them was interrupted"
            raise FormatError(path, what, hint=f"`quantize clean {path.parent}` puts the old shards back")
    others = [other for other in shard_paths(prefix, count) if other.exists()]
    if others:
        what = f"the first of {count} shards is missing, and {len(others)} of the others are there"
        raise FormatError(path, what, hint="put it beside them, or write the model again")


def _open_others(first: Path, count: int) -> Iterator[GGUFFile]:
    """The later shards of a model, closed again. The number of each is checked against its name."""
    paths = shard_paths(shard_prefix(first), count)
    if paths[0] != first:
        what = f"the first of {count} shards of a model, expected to be called {paths[0].name} for the others to be found"
        raise FormatError(first, what, hint="restore the names of all shards")
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        what = f"shards of the model are missing: {listed(missing, most=1)}"
        raise FormatError(first, what, hint="put them beside the first")
    for number, path in enumerate(paths[1:], 2):
        shard = _open_file(path)
        shard.close()
        if shard.split != (number, count):
            found = " of ".join(map(str, shard.split))
            raise FormatError(path, f"expected shard {number} of {count}, found {found}", hint=_MIXED)
        yield shard


def _join(shards: Sequence[GGUFFile]) -> GGUFFile:
    """All shards of a model as one file."""
    first = shards[0]
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        doubled = next((name for name in shard.tensors if name in tensors), None)
        if doubled is not None:
            raise FormatError(shard.path, f"tensor {doubled!r} is in {tensors[doubled].file.path.name} too", hint=_MIXED)
        tensors |= shard.tensors
    announced = first.get(TENSORS_KEY)
    if announced != len(tensors):
        what = f"{TENSORS_KEY} is {announced}, and the {len(shards)} shards have {len(tensors)} tensors"
        raise FormatError(first.path, what, hint=_MIXED)
    size = sum(shard.file_bytes for shard in shards)
    files = tuple(file for shard in shards for file in shard._files)
    return replace(first, tensors=tensors, file_bytes=size, _files=files, _mappings={})


def _open_file(path: str | PathLike[str]) -> GGUFFile:
    if Path(path).is_dir():
        hint = f"{_CONVERT} if it is a checkpoint; {_PREVIEW}"
        raise FormatError(path, "expected a GGUF file, found a directory", hint=hint)
    file = InputFile(path)
    try:
        return _read(file)
    except BaseException:
        file.close()
        raise


def _read(file: InputFile) -> GGUFFile:
    _check_magic(file)
    mapping = _map_file(file)
    header = _Header(file.path, mapping)
    version = header.version()
    count_at = header.position
    tensor_count, entry_count = header.u64("the number of tensors"), header.u64("the number of metadata entries")
    left = header.end - header.position
    if entry_count * _SMALLEST_ENTRY + tensor_count * _SMALLEST_TENSOR > left:
        what = f"{entry_count} metadata entries and {tensor_count} tensors announced, {left} bytes left to hold them"
        header.fail(what, count_at)
    metadata = header.metadata(entry_count)
    alignment = _alignment(file.path, metadata)
    described = header.tensor_table(tensor_count)
    data_offset = align(header.position, alignment)
    tensors = _place_tensors(file, described, data_offset, alignment)
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=header.position)
    _check_end(file, end, alignment)
    return GGUFFile(file.path, version, alignment, metadata, tensors, file.size, data_offset, (file,), {file: mapping})


def _map_file(file: InputFile) -> mmap.mmap:
    return mmap.mmap(file.fileno(), file.size, access=mmap.ACCESS_READ)


def _check_magic(file: InputFile) -> None:
    """Refuse a file that is not GGUF, with the name of its format if it is recognised.

    Raises:
        FormatError: unless the file has the magic bytes of GGUF and room for a header.
    """
    start = file.read(0, min(file.size, _HEADER_BYTES))
    if not start:
        raise FormatError(file.path, "expected a GGUF file, found an empty one", hint="Download the file again.")
    if start[: len(MAGIC)] == MAGIC:
        if len(start) < _HEADER_BYTES:
            what = f"the file is cut short: {file.size} bytes, a GGUF header has at least {_HEADER_BYTES}"
            raise FormatError(file.path, what, hint="Download the file again.")
        return
    for mark, position, found, hint in _FOREIGN:
        if start.startswith(mark, position):
            raise FormatError(file.path, f"expected a GGUF file, found {found}", offset=0, hint=hint)
    raise FormatError(file.path, f"expected a GGUF file, which starts with {MAGIC!r}, found {start[:4]!r}", offset=0)


def _alignment(path: Path, metadata: Metadata) -> int:
    entry = metadata.get(ALIGNMENT_KEY)
    if entry is None:
        return DEFAULT_ALIGNMENT
    if entry.type != ValueType.UINT32 or not is_alignment(entry.value):
        what = f"{ALIGNMENT_KEY} is {entry.value!r} ({entry.type.name}), expected a power of two (UINT32)"
        raise FormatError(path, what)
    return int(entry.value)


class _Header:
    """A reader of the header of a mapped file, which checks every read against the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.end = len(data)
        self.position = len(MAGIC)

    def fail(self, what: str, offset: int, hint: str | None = None) -> NoReturn:
        raise FormatError(self.path, what, offset=offset, hint=hint)

    def take(self, count: int, what: str) -> int:
        """Skip `count` bytes and return their offset."""
        start = self.position
        if count > self.end - start:
            self.fail(
                f"the file is cut short or damaged: {what} takes {count} bytes, {self.end - start} left in the file",
                start,
            )
        self.position = start + count
        return start

    def u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self.data, self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = _U64.unpack_from(self.data, self.take(8, what))[0]
        return value

    def string(self, what: str) -> str:
        at = self.position
        length = self.u64(f"the length of {what}")
        if length > _MAX_STRING:
            self.fail(f"{what} has {length} bytes, at most {_MAX_STRING} expected", at)
        start = self.take(length, what)
        return decode_string(self.data[start : start + length])

    def version(self) -> int:
        at = self.position
        version = self.u32("the version")
        if version in READ_VERSIONS:
            return version
        # A small number in big-endian order has zeros in the low half.
        big_endian = version & 0xFFFF == 0 and version != 0
        found = "big-endian GGUF" if big_endian else f"GGUF version {version}"
        raise UnsupportedError(
            f"{self.path}: {found}, expected little-endian version 2 or 3 (at byte {at})",
            hint="gguf-convert-endian of the gguf package swaps the byte order" if big_endian else None,
        )

    def value_type(self, what: str) -> ValueType:
        at = self.position
        number = self.u32(f"the type of {what}")
        try:
            return ValueType(number)
        except ValueError:
            self.fail(f"{what} has the unknown value type {number}, expected 0 to {max(ValueType)}", at)

    def metadata(self, count: int) -> Metadata:
        entries: Metadata = {}
        for index in range(count):
            at = self.position
            key = self.string(f"metadata key {index}")
            if not key:
                self.fail(f"metadata key {index} is empty", at)
            if key in entries:
                self.fail(f"the metadata key {key!r} comes twice", at)
            entries[key] = self.entry(f"the value of {key!r}")
        return entries

    def entry(self, what: str) -> Field:
        kind = self.value_type(what)
        if kind == ValueType.STRING:
            return Field(kind, self.string(what))
        if kind == ValueType.ARRAY:
            return self.array(what)
        number = _NUMBERS[kind]
        start = self.take(number.size, what)
        return Field(kind, number.unpack_from(self.data, start)[0])

    def array(self, what: str) -> Field:
        at = self.position
        element = self.value_type(f"an element of {what}")
        if element == ValueType.ARRAY:
            self.fail(f"{what} is an array of arrays, which neither quantcli nor llama.cpp reads", at)
        count = self.u64(f"the length of {what}")
        if count > _MAX_ELEMENTS:
            self.fail(f"{what} has {count} elements, at most {_MAX_ELEMENTS} expected", at)
        if element == ValueType.STRING:
            return Field(ValueType.ARRAY, self.strings(count, what), element)
        number = _NUMBERS[element]
        start = self.take(count * number.size, what)
        # A copy, since metadata outlives the memory map.
        data = self.data[start : self.position]
        if element == ValueType.BOOL:
            data = data.translate(_BOOLEANS)
        return Field(ValueType.ARRAY, PackedNumbers(data, number.format), element)

    def strings(self, count: int, what: str) -> PackedStrings:
        """`count` strings, located but not decoded."""
        start, left = self.position, self.end - self.position
        if count * LENGTH.size > left:
            self.fail(f"{what} has {count} strings, {left} bytes left in the file", start)
        data = memoryview(self.data)[start:]
        bounds = string_bounds(data, count)
        if len(bounds) <= count:
            found = f"the file is cut short or damaged: string {len(bounds) - 1} of {what} runs past the end"
            self.fail(found, start + bounds[-1])
        self.position = start + bounds[-1]
        return PackedStrings(bytes(data[: bounds[-1]]), bounds)

    def tensor_table(self, count: int) -> list[tuple[TensorInfo, int, int]]:
        """The description of every tensor, its offset in the data, and the position of the description."""
        table = [self.tensor(index) for index in range(count)]
        names: set[str] = set()
        for info, _, at in table:
            if info.name in names:
                self.fail(f"the tensor name {info.name!r} comes twice", at)
            names.add(info.name)
        return table

    def tensor(self, index: int) -> tuple[TensorInfo, int, int]:
        at = self.position
        length = self.u64(f"the length of the name of tensor {index}")
        if length > MAX_NAME_LENGTH:
            self.fail(f"the name of tensor {index} has {length} bytes, at most {MAX_NAME_LENGTH} expected", at)
        start = self.take(length, f"the name of tensor {index}")
        name = decode_string(self.data[start : start + length])
        what = f"tensor {name!r}"
        shape_at = self.position
        dimensions = self.u32(f"{what}: the number of dimensions")
        if dimensions > MAX_DIMENSIONS:
            self.fail(f"{what} has {dimensions} dimensions, at most {MAX_DIMENSIONS} expected", shape_at)
        lengths = [self.u64(f"{what}: a dimension") for _ in range(dimensions)]
        if lengths and max(lengths) > _MAX_DIMENSION:
            self.fail(f"{what} has a dimension of {max(lengths)}, at most {_MAX_DIMENSION} expected", shape_at)
        if math.prod(length for length in lengths if length) > _MAX_DIMENSION:
            self.fail(f"{what} has more weights than can be counted: {' x '.join(map(str, lengths))}", shape_at)
        type_at = self.position
        number = self.u32(f"{what}: the type")
        kind = TYPES_BY_ID.get(number) or REMOVED_TYPES.get(number)
        if kind is None:
            self.fail(f"{what} has the unknown type {number}", type_at, "the file may be newer than this quantcli")
        row = lengths[0] if lengths else 1
        if row % kind.block_length:
            self.fail(f"{what} has rows of {row}, not divisible by the {kind.name} block of {kind.block_length}", shape_at)
        offset = self.u64(f"{what}: the offset")
        return TensorInfo(name, tuple(reversed(lengths)), kind), offset, at


def _place_tensors(
    file: InputFile, table: list[tuple[TensorInfo, int, int]], data_offset: int, alignment: int
) -> dict[str, StoredTensor]:
    """The lazy tensors, checked to be aligned, within the file, and without overlap.

    Raises:
        FormatError: with the offset of the wrong description.
    """
    for info, offset, at in table:
        if offset % alignment:
            what = f"tensor {info.name!r} starts at {offset} of the data, not a multiple of the alignment {alignment}"
            raise FormatError(file.path, what, offset=at)
        stop = data_offset + offset + info.nbytes
        if stop > file.size:
            what = f"the file is cut short: tensor {info.name!r} ends at byte {stop}, the file at {file.size}"
            raise FormatError(file.path, what, offset=at, hint="Download or convert the file again.")
    by_offset = sorted((entry for entry in table if entry[0].nbytes), key=lambda entry: entry[1])
    for (before, start, _), (after, offset, at) in pairwise(by_offset):
        if start + before.nbytes > offset:
            raise FormatError(file.path, f"the tensors {before.name!r} and {after.name!r} overlap", offset=at)
    return {
        info.name: (RemovedTensor if info.type.id in REMOVED_TYPES else StoredTensor)(
            info.name, info.shape, info.type, file, data_offset + offset
        )
        for info, offset, _ in table
    }


def _check_end(file: InputFile, end: int, alignment: int) -> None:
    """Refuse another GGUF file after the last tensor. Other trailing bytes are ignored."""
    for place in (end, align(end, alignment)):
        if file.size >= place + _HEADER_BYTES and file.read(place, len(MAGIC)) == MAGIC:
            what = "several concatenated GGUF files: another begins"
            raise FormatError(file.path, what, offset=place, hint=_JOINED)
