"""Read safetensors: a little-endian u64, that many bytes of JSON, and the tensors at the offsets in the JSON.

The header is validated before it is used: the tensors must cover the data without gaps or overlap, as the format requires.
Source: the format's description and limits in the safetensors project (`README.md`, `safetensors/src/tensor.rs`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from typing import Any, Final

from quantcli.core.block_types import ELEMENT_TYPES
from quantcli.core.errors import FormatError, UnsupportedError
from quantcli.formats.json_text import parse_object
from quantcli.tensors.files import DataFile, data_file
from quantcli.tensors.tensor import MAX_COUNT, MAX_DIMENSIONS, Tensor, stored_tensor

MAX_HEADER: Final = 100_000_000
"""The most bytes of the JSON: the limit of the reference implementation."""

_LENGTH_BYTES: Final = 8


def open_safetensors(source: str | PathLike[str] | DataFile) -> dict[str, Tensor]:
    """The lazy tensors of a safetensors file by name, sorted. No tensor data are read.

    Raises:
        FormatError: if the file is missing, truncated, or violates the format.
        UnsupportedError: if rows of a type narrower than a byte do not end on a byte boundary.
    """
    with data_file(source) as file:
        header, data_offset = _read_header(file)
        return _tensors(file, header, data_offset)


def _read_header(file: DataFile) -> tuple[dict[str, Any], int]:
    """The parsed JSON without its `__metadata__`, and the offset of the data."""
    if file.size < _LENGTH_BYTES:
        raise FormatError(file.path, f"too short for a safetensors file: {file.size} bytes, at least 8 expected")
    length = int.from_bytes(file.read(0, _LENGTH_BYTES), "little")
    if length > MAX_HEADER:
        raise FormatError(
            file.path, f"not a safetensors file: a header of {length} bytes, at most {MAX_HEADER} expected", offset=0
        )
    if length > file.size - _LENGTH_BYTES:
        raise FormatError(
            file.path,
            f"the file is cut short: a header of {length} bytes, {file.size - _LENGTH_BYTES} left in the file",
            offset=0,
            hint="Download the file again.",
        )
    header = parse_object(file.path, file.read(_LENGTH_BYTES, length), "the header", offset=_LENGTH_BYTES)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # MLX writes null for no metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(file.path, "__metadata__ is not an object of strings", offset=_LENGTH_BYTES)
    return header, _LENGTH_BYTES + length


def _tensors(file: DataFile, header: Mapping[str, Any], data_offset: int) -> dict[str, Tensor]:
    spans = sorted((_span(file, name, entry), name) for name, entry in header.items())
    position = 0
    for (begin, end), name in spans:
        if begin != position:
            fault = "overlaps the one before" if begin < position else "leaves a hole behind the one before"
            raise FormatError(
                file.path,
                f"tensor {name!r} {fault}: it begins at {begin}, expected {position}",
                offset=data_offset + begin,
            )
        position = end
    found = file.size - data_offset
    if found != position:
        what = "the file is cut short" if found < position else "the file goes on after the last tensor"
        hint = "Download the file again." if found < position else None
        raise FormatError(file.path, f"{what}: {found} bytes of data, expected {position}", hint=hint)
    begins = {name: begin for (begin, _), name in spans}
    return {name: _tensor(file, name, header[name], data_offset + begins[name]) for name in sorted(begins)}


def _span(file: DataFile, name: str, entry: Any) -> tuple[int, int]:
    """The bounds of a tensor in the data. Its size is checked against its shape and dtype."""

    def fault(what: str) -> FormatError:
        return FormatError(file.path, f"tensor {name!r}: {what}", offset=_LENGTH_BYTES)

    if not name.isprintable():
        raise fault("the name is not printable text")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise fault("expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    type = ELEMENT_TYPES.get(dtype) if isinstance(dtype, str) else None
    if type is None:
        raise fault(f"unknown dtype {dtype!r}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise fault(f"shape {_shown(shape)} is not a list of at most {MAX_DIMENSIONS} sizes")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fault(f"data_offsets {_shown(offsets)} are not a begin and an end")
    size = math.prod(shape)
    if size * type.block_bytes != (offsets[1] - offsets[0]) * type.block_length:
        raise fault(
            f"{offsets[1] - offsets[0]} bytes of data, expected {size * type.block_bytes // type.block_length} "
            f"for {dtype} of shape {_shown(shape)}"
        )
    return offsets[0], offsets[1]


def _tensor(file: DataFile, name: str, entry: dict[str, Any], offset: int) -> Tensor:
    type, shape = ELEMENT_TYPES[entry["dtype"]], tuple(entry["shape"])
    if (shape[-1] if shape else 1) % type.block_length:
        raise UnsupportedError(f"{file.path}: tensor {name!r}: rows of {type.name} do not end on a byte")
    return stored_tensor(name, shape, type, file, offset)


def _are_counts(value: Any) -> bool:
    """Whether a value is a list of integers from 0 to `MAX_COUNT`, which a JSON true is not."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_COUNT for item in value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
