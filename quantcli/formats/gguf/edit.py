"""Change the metadata of a GGUF file: in place where the new header has the length of the old one, else by a copy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from quantcli.core.errors import OutputError, UsageError
from quantcli.formats.gguf.reader import GGUFFile
from quantcli.formats.gguf.shards import COUNT_KEY
from quantcli.formats.gguf.spec import ALIGNMENT_KEY, NUMBER_FORMATS, Field, Metadata, ValueType
from quantcli.formats.gguf.split import copy_tensors
from quantcli.formats.gguf.writer import GGUFWriter, make_layout

FLOAT_FORMATS: Final = ("<f", "<d")

FIXED: Final = (ALIGNMENT_KEY,)
"""The keys that say how the file is laid out."""


def edited(
    metadata: Metadata, *, values: Mapping[str, Field], renamed: Mapping[str, str], removed: Iterable[str]
) -> Metadata:
    """Metadata with some keys renamed, some removed, and some set, in this order. New keys are last.

    Raises:
        UsageError: for a key to rename or to remove that is not there, a new name that is, or a key of the layout.
    """
    for key in (*values, *renamed, *renamed.values(), *removed):
        if key in FIXED:
            raise UsageError(f"{key} says how the file is laid out, and cannot be changed")
    for key in (*renamed, *removed):
        if key not in metadata:
            raise UsageError(f"there is no metadata key {key!r}")
    for old, new in renamed.items():
        if new in metadata and new not in renamed:
            raise UsageError(f"{old!r} cannot be renamed: there is a key {new!r}")
    gone = set(removed)
    kept = {renamed.get(key, key): field for key, field in metadata.items() if key not in gone}
    return {**kept, **values}


def with_value(field: Field, text: str) -> Field:
    """A field of the same type with the value that a text says.

    Raises:
        ValueError: for an array, or a text that is no value of the type.
    """
    if field.type == ValueType.STRING:
        return replace(field, content=text)
    if field.type == ValueType.BOOL:
        return replace(field, content={"true": True, "false": False}[text.lower()])
    if field.type == ValueType.ARRAY:
        raise ValueError("it is an array")
    return replace(field, content=float(text) if NUMBER_FORMATS[field.type] in FLOAT_FORMATS else int(text))


def write_edited(
    file: GGUFFile,
    metadata: Metadata,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> bool:
    """Give a file other metadata, or write a copy that has it. Returns whether tensors were copied.

    Without `output`, the header is overwritten by one write if it keeps its length, and else the file is replaced by a copy
    once that is complete.

    Raises:
        UsageError: for a split model.
        ModelError: for metadata that GGUF cannot hold.
        OutputError: if the file cannot be written, or `output` exists (unless `overwrite`).
    """
    if file.get(COUNT_KEY, 0) and file.split[1] > 1:
        raise UsageError(f"{file.path}: a split model", hint="quantize merge makes one file of it")
    tensors = list(file.tensors.values())
    layout = make_layout(metadata, tensors)
    fits = len(layout.header) == file.data_offset and layout.offsets == tuple(tensor.offset for tensor in tensors)
    if output is None and fits:
        _overwrite(file.path, layout.header)
        return False
    target = file.path if output is None else output
    with GGUFWriter(target, metadata, tensors, overwrite=overwrite or output is None) as writer:
        copy_tensors(tensors, writer, advance)
    return True


def _overwrite(path: Path, header: bytes) -> None:
    """Replace the first bytes of a file by one write, and flush it to the disk."""
    try:
        with path.open("r+b", buffering=0) as stream:
            written = stream.write(header)
            os.fsync(stream.fileno())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    if written != len(header):
        raise OutputError(f"{path}: only {written} of {len(header)} bytes of the header were written")
