"""Read files of `torch.save` without torch: the zip layout of PyTorch 1.6 and later, and the older layout.

Both have a pickle that refers to storages by key, and the storages as raw bytes. The pickle is read as data (see
`inert_pickle`). The storages are read lazily. Source: `torch/serialization.py` and `torch/_utils.py` of PyTorch.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from types import MappingProxyType
from typing import Any, Final

from quantcli.core.block_types import ELEMENT_TYPES, BlockType
from quantcli.core.errors import FormatError, ModelError, UnsupportedError
from quantcli.core.listing import listed
from quantcli.formats.checkpoint.inert_pickle import Constructor, load_pickle, plain_dict
from quantcli.tensors.files import DataFile, data_file
from quantcli.tensors.strided import StridedTensor, is_contiguous
from quantcli.tensors.tensor import MAX_COUNT, MAX_DIMENSIONS, Tensor, stored_tensor

MAX_PICKLE: Final = 1 << 26
"""The most bytes of a pickle, which has about 250 for each tensor."""

MAX_PAIRS: Final = 1_000_000
"""The most items that constructor calls of one file may copy into dictionaries."""

NESTS: Final = ("state_dict", "model_state_dict", "model", "module")
"""The keys of the state dict in training checkpoints, which also have optimizer states; in the order they are tried."""

MAGIC_NUMBER: Final = 0x1950A86A20F9469CFC6C
"""The first object of the layout before 1.6."""

_TORCH_TYPES: Final = (
    # element type, torch dtype, storage class where there is one
    ("F64", "float64", "DoubleStorage"), ("F32", "float32", "FloatStorage"), ("F16", "float16", "HalfStorage"),
    ("BF16", "bfloat16", "BFloat16Storage"), ("I64", "int64", "LongStorage"), ("I32", "int32", "IntStorage"),
    ("I16", "int16", "ShortStorage"), ("I8", "int8", "CharStorage"), ("U8", "uint8", "ByteStorage"),
    ("BOOL", "bool", "BoolStorage"), ("C64", "complex64", "ComplexFloatStorage"),
    ("C128", "complex128", "ComplexDoubleStorage"), ("C32", "complex32", None), ("U16", "uint16", None),
    ("U32", "uint32", None), ("U64", "uint64", None), ("F8_E4M3", "float8_e4m3fn", None),
    ("F8_E4M3FNUZ", "float8_e4m3fnuz", None), ("F8_E5M2", "float8_e5m2", None), ("F8_E5M2FNUZ", "float8_e5m2fnuz", None),
    ("F8_E8M0", "float8_e8m0fnu", None),
)  # fmt: skip


def open_pytorch(source: str | PathLike[str] | DataFile) -> dict[str, Tensor]:
    """The lazy tensors of the state dict in a PyTorch file by name, in its order. No tensor data are read.

    The state dict is the saved object itself, or is under one of `NESTS`. Other values are ignored. Tensors may share a
    storage.

    Raises:
        FormatError: if the file is missing, truncated or damaged, or has no state dict.
        UnsafePickleError: if its pickle asks for more than a state dict needs.
        UnsupportedError: for a compressed, encrypted, big-endian or TorchScript file.
        ModelError: if the state dict has no tensors.
    """
    with data_file(source) as file:
        start = file.read(0, min(4, file.size))
        root, places = (_read_zip if start == b"PK\3\4" else _read_legacy)(file)
        return {name: _locate(file, name, view, places) for name, view in _state_dict(file, root)}


# --- what the pickle may build -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Storage:
    """A storage, or its `elements` elements from `start` on, in elements of `type`. `key` names its bytes in the file."""

    type: BlockType
    key: str
    elements: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor as a strided view of its storage. Offset and strides are in elements of `type`."""

    storage: _Storage
    type: BlockType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _StorageClass:
    type: BlockType


@dataclass(frozen=True, slots=True)
class _Inert:
    """A class that is only named as an argument, and never called."""


_Span = tuple[int, int]
"""The position of a storage in the file: offset and bytes."""


def _are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(item) is int and 0 <= item <= MAX_COUNT for item in value)


def _view(storage: Any, offset: Any, shape: Any, strides: Any, type: BlockType) -> _View:
    if not isinstance(storage, _Storage) or not isinstance(type, BlockType):
        raise ValueError("a tensor without a storage or an element type")
    if not (_are_counts((offset,)) and _are_counts(shape) and _are_counts(strides)):
        raise ValueError("a tensor whose offset, shape or strides are no sizes")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} dimensions with {len(strides)} strides")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    available = storage.elements * storage.type.block_bytes // type.block_bytes
    if math.prod(shape) and last >= available:
        raise ValueError(f"a tensor that reaches element {last} of a storage of {available}")
    return _View(storage, type, offset, shape, strides)


def _tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, _gradient: Any = None, _hooks: Any = None, marks: Any = None
) -> _View:
    _refuse_marks(marks)
    return _view(storage, offset, shape, strides, getattr(storage, "type", None))  # type: ignore[arg-type]


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _gradient: Any, _hooks: Any, type: Any, marks: Any = None
) -> _View:
    _refuse_marks(marks)
    return _view(storage, offset, shape, strides, type)


def _refuse_marks(marks: Any) -> None:
    """Refuse views that are marked as the negative or the conjugate of the stored numbers."""
    if isinstance(marks, dict) and any(marks.values()):
        names = ", ".join(str(name)[:20] for name, value in marks.items() if value)
        raise ValueError(f"a tensor whose values are not those of its storage: {names}")


def _parameter(view: Any, *_unused: Any) -> _View:
    if not isinstance(view, _View):
        raise ValueError("a parameter that is no tensor")
    return view


def _size(sizes: Any = ()) -> tuple[int, ...]:
    if not _are_counts(sizes):
        raise ValueError("a torch.Size that is no tuple of sizes")
    return sizes  # type: ignore[no-any-return]


_TENSOR_V2 = Constructor(_tensor_v2)
_TENSOR_V3 = Constructor(_tensor_v3)


def _of_type(rebuild: Any, _class: Any, arguments: Any, *_state: Any) -> _View:
    """A tensor with attributes: `torch._tensor._rebuild_from_type_v2`. The attributes are dropped."""
    if rebuild not in (_TENSOR_V2, _TENSOR_V3) or not isinstance(arguments, tuple):
        raise ValueError("a tensor rebuilt by something else")
    view: _View = rebuild.build(*arguments)
    return view


_BESIDE: Final = (
    "torch.device", "builtins.set", "builtins.bytearray", "builtins.complex", "collections.Counter", "_codecs.encode",
)  # fmt: skip
"""Globals of values other than tensors in training checkpoints, as far as torch.load allows them by default."""

_GLOBALS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "torch._utils._rebuild_tensor": _TENSOR_V2,
        "torch._utils._rebuild_tensor_v2": _TENSOR_V2,
        "torch._utils._rebuild_tensor_v3": _TENSOR_V3,
        "torch._utils._rebuild_parameter": Constructor(_parameter),
        "torch._utils._rebuild_parameter_with_state": Constructor(_parameter),
        "torch._tensor._rebuild_from_type_v2": Constructor(_of_type),
        "torch.Size": Constructor(_size),
        **dict.fromkeys(_BESIDE, Constructor(lambda *_: _Inert())),
        "torch.Tensor": _Inert(),
        "torch.nn.parameter.Parameter": _Inert(),
        "torch.storage.UntypedStorage": _StorageClass(ELEMENT_TYPES["U8"]),
        **{f"torch.{dtype}": ELEMENT_TYPES[element] for element, dtype, _ in _TORCH_TYPES},
        **{f"torch.{name}": _StorageClass(ELEMENT_TYPES[element]) for element, _, name in _TORCH_TYPES if name},
    }
)


class _Reader:
    """Loads the pickle of one file and records the storages it refers to."""

    def __init__(self, file: DataFile) -> None:
        self.file = file
        self.storages: dict[str, _Storage] = {}
        self._pairs = 0

    def load(self, stream: BytesIO, offset: int = 0) -> Any:
        known = {"collections.OrderedDict": Constructor(self._ordered_dict), **_GLOBALS}
        return load_pickle(self.file.path, stream, known, self._storage, offset=offset)

    def _ordered_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        # Pickles of Python 2 pass the items as an argument. A malicious pickle may pass the same list many times.
        if not isinstance(pairs, list | tuple):
            raise ValueError("a dictionary of something else than pairs")
        self._pairs += len(pairs)
        if self._pairs > MAX_PAIRS:
            raise ValueError(f"more than {MAX_PAIRS} items")
        return plain_dict(pairs)

    def _storage(self, reference: Any) -> _Storage:
        """The storage of a persistent id `("storage", class, key, device, elements)`.

        Before 1.6 there is a sixth item: None, or for a part of a storage `(key of the part, start, elements)`.
        """
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
            raise ValueError("a reference that is not to a storage")
        _, kind, key, _, elements, *part = reference
        if not isinstance(kind, _StorageClass) or not isinstance(key, str) or not _are_counts((elements,)):
            raise ValueError("a storage without a class, key or size")
        whole = self.storages.setdefault(key, _Storage(kind.type, key, elements))
        if not part or part[0] is None:
            return _Storage(kind.type, key, elements)
        if not isinstance(part[0], tuple) or len(part[0]) != 3 or not _are_counts(part[0][1:]):
            raise ValueError("a part of a storage without start and size")
        _, start, size = part[0]
        if start + size > whole.elements:
            raise ValueError(f"a part that reaches element {start + size} of a storage of {whole.elements}")
        return _Storage(kind.type, key, size, start)


# --- the zip layout -------------------------------------------------------------------------------------------------------


def _read_zip(file: DataFile) -> tuple[Any, dict[str, _Span]]:
    entries = _zip_entries(file)
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise FormatError(file.path, f"a zip archive with {len(pickles)} entries data.pkl: not written by torch.save")
    prefix = pickles[0].removesuffix("data.pkl")
    if prefix + "constants.pkl" in entries:
        raise UnsupportedError(
            f"{file.path}: a TorchScript program, not a state dict", hint="Save its state_dict() and convert that."
        )
    if prefix + "byteorder" in entries:
        order = file.read(*_zip_span(file, entries[prefix + "byteorder"], 16))
        if order == b"big":
            raise UnsupportedError(
                f"{file.path}: stored in big-endian byte order", hint="Save it again on a little-endian machine."
            )
        if order != b"little":
            raise FormatError(file.path, f"byte order {order!r}, expected 'little'")
    offset, size = _zip_span(file, entries[pickles[0]], MAX_PICKLE)
    reader = _Reader(file)
    root = reader.load(BytesIO(file.read(offset, size)), offset)
    names = {key: f"{prefix}data/{key}" for key in reader.storages}
    missing = [name for name in names.values() if name not in entries]
    if missing:
        raise FormatError(file.path, f"{len(missing)} storages are missing from the archive, the first {missing[0]!r}")
    file.expect(entries[name].header_offset for name in names.values())
    return root, {key: _zip_span(file, entries[name], MAX_COUNT) for key, name in names.items()}


def _zip_entries(file: DataFile) -> dict[str, zipfile.ZipInfo]:
    try:
        with file.stream() as stream, zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        hint = "It may be cut short: download the file again."
        raise FormatError(file.path, f"a damaged zip archive: {error}", hint=hint) from None
    found = {entry.filename: entry for entry in entries}
    if len(found) < len(entries):
        raise FormatError(file.path, "a zip archive with two entries of the same name")
    return found


def _zip_span(file: DataFile, entry: zipfile.ZipInfo, limit: int) -> _Span:
    """The position of an entry's data, which follow the entry's local header. Only that header has its own length."""
    place = f"entry {entry.filename!r}"
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        kind = "encrypted" if entry.flag_bits & 1 else "compressed"
        raise UnsupportedError(f"{file.path}: {place} is {kind}", hint="Save the file again with torch.save.")
    if entry.file_size != entry.compress_size or entry.file_size > limit:
        raise FormatError(file.path, f"{place} has {entry.file_size} bytes, expected at most {limit}")
    header = file.read(entry.header_offset, 30) if entry.header_offset >= 0 else b""
    if header[:4] != b"PK\3\4":
        raise FormatError(file.path, f"{place} has no header where the archive says", offset=entry.header_offset)
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    offset = entry.header_offset + 30 + name_length + extra_length
    if offset + entry.file_size > file.size:
        raise FormatError(file.path, f"{place} reaches beyond the end of the file", offset=offset)
    return offset, entry.file_size


# --- the layout before 1.6 ------------------------------------------------------------------------------------------------


def _read_legacy(file: DataFile) -> tuple[Any, dict[str, _Span]]:
    """Five pickles (magic number, protocol, system, object, storage keys), then each storage after its 64-bit length."""
    stream = BytesIO(file.read(0, min(MAX_PICKLE, file.size)))
    if load_pickle(file.path, stream, {}) != MAGIC_NUMBER:
        raise FormatError(file.path, "a pickle, but not one that torch.save wrote: its magic number is missing")
    load_pickle(file.path, stream, {})
    system = load_pickle(file.path, stream, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UnsupportedError(
            f"{file.path}: stored in big-endian byte order", hint="Save it again on a little-endian machine."
        )
    reader = _Reader(file)
    root = reader.load(stream)
    keys = load_pickle(file.path, stream, {})
    strange = not isinstance(keys, list) or not all(isinstance(key, str) for key in keys)
    if strange or sorted(keys) != sorted(reader.storages):
        raise FormatError(file.path, "the list of storages is not that of the pickle", offset=stream.tell())
    places, position = {}, stream.tell()
    for key in keys:
        storage = reader.storages[key]
        elements = int.from_bytes(file.read(position, 8), "little")
        if elements != storage.elements:
            what = f"storage {key!r} has {elements} elements, expected {storage.elements}"
            raise FormatError(file.path, what, offset=position)
        places[key] = (position + 8, elements * storage.type.block_bytes)
        position += 8 + elements * storage.type.block_bytes
    if position > file.size:
        hint = "Download the file again."
        raise FormatError(file.path, f"the file is cut short: {file.size} bytes, expected {position}", hint=hint)
    return root, places


# --- from the saved object to tensors -------------------------------------------------------------------------------------


def _state_dict(file: DataFile, root: Any) -> Iterator[tuple[str, _View]]:
    """Names and tensors of the state dict in the saved object."""
    if not isinstance(root, dict):
        kind = "tensor" if isinstance(root, _View) else type(root).__name__
        raise FormatError(file.path, f"holds a {kind}, expected a state dict")
    found = _find_state_dict(root, len(NESTS))
    if not found:
        keys = listed([repr(str(key)[:40]) for key in root])
        raise ModelError(f"{file.path}: no tensors in it, expected a state dict: its keys are {keys or 'none'}")
    for name, value in found.items():
        if isinstance(value, _View):
            if not isinstance(name, str) or not name.isprintable():
                raise FormatError(file.path, f"a tensor whose name is not printable text: {str(name)[:80]!r}")
            yield name, value


def _find_state_dict(node: dict[Any, Any], depth: int) -> dict[Any, Any] | None:
    """The innermost dictionary with tensors under one of `NESTS`, else `node` if it has tensors."""
    for name in NESTS if depth else ():
        inner = node.get(name)
        if isinstance(inner, dict) and (found := _find_state_dict(inner, depth - 1)):
            return found
    return node if any(isinstance(value, _View) for value in node.values()) else None


def _locate(file: DataFile, name: str, view: _View, places: Mapping[str, _Span]) -> Tensor:
    storage, width = view.storage, view.type.block_bytes
    offset, size = places[storage.key]
    end = (storage.start + storage.elements) * storage.type.block_bytes
    if end > size:
        raise FormatError(file.path, f"tensor {name!r}: a storage of {size} bytes, expected {end}", offset=offset)
    offset += storage.start * storage.type.block_bytes + view.offset * width
    if is_contiguous(view.shape, view.strides):
        return stored_tensor(name, view.shape, view.type, file, offset)
    return StridedTensor(name, view.shape, view.type, file, offset, tuple(stride * width for stride in view.strides))
