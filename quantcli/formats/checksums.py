"""SHA-256 checksums of GGUF files and of their tensors, in a file beside the model.

The own bytes of a model stay those of llama.cpp. So its checksums are in `FILE.sha256`, in the format of sha256sum: a line
for the file, or for each shard, which `sha256sum -c` checks; and a comment for each tensor, which it ignores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from quantcli.core.errors import FormatError
from quantcli.formats.output_file import OutputFile
from quantcli.tensors.files import InputFile
from quantcli.tensors.tensor import StoredTensor

SUFFIX: Final = ".sha256"

_PIECE: Final = 1 << 22
"""Bytes that are read at once."""

_LINE: Final = re.compile(r"(# )?([0-9a-f]{64})  (.+)")
_TITLE: Final = "# SHA-256 of the file (for sha256sum -c), and of each tensor"


@dataclass(frozen=True)
class Checksums:
    """SHA-256 digests in hexadecimal digits: of files by their names without directories, and of tensors by theirs."""

    files: Mapping[str, str]
    tensors: Mapping[str, str]


def checksum_path(path: Path) -> Path:
    """The file with the checksums of a GGUF file, or of the model that begins with this shard."""
    return path.with_name(path.name + SUFFIX)


def read_checksums(path: Path) -> Checksums:
    """Read a file of checksums. Lines of sha256sum's other formats are not understood.

    Raises:
        FormatError: if the file cannot be read, or has a line that is no checksum.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(path, f"cannot be read as checksums: {error}") from error
    files: dict[str, str] = {}
    tensors: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match:
            (tensors if match[1] else files)[match[3]] = match[2]
        elif line and not line.startswith("#"):
            raise FormatError(path, f"line {number} is no SHA-256 checksum of sha256sum")
    if not files:
        raise FormatError(path, "has no checksum of a file")
    return Checksums(files, tensors)


def write_checksums(path: Path, checksums: Checksums, *, overwrite: bool = False) -> None:
    """Write a file of checksums.

    Raises:
        OutputError: if the file cannot be written, or exists (unless `overwrite`).
    """
    lines = [_TITLE, *(f"{digest}  {name}" for name, digest in checksums.files.items())]
    lines += [f"# {digest}  {name}" for name, digest in checksums.tensors.items()]
    data = "".join(line + "\n" for line in lines).encode()
    with OutputFile(path, len(data), overwrite=overwrite) as file:
        file.write_at(memoryview(data), 0)


def file_digest(path: Path, advance: Callable[[int], object] = lambda done: None) -> str:
    """The SHA-256 of a file. `advance` is called with the bytes read since the last call."""
    with InputFile(path) as file:
        return _digest(file, 0, file.size, advance)


def tensor_digest(tensor: StoredTensor, advance: Callable[[int], object] = lambda done: None) -> str:
    """The SHA-256 of a tensor's data."""
    return _digest(tensor.file, tensor.offset, tensor.nbytes, advance)


def _digest(file: object, offset: int, size: int, advance: Callable[[int], object]) -> str:
    assert isinstance(file, InputFile)
    digest = sha256()
    for start in range(offset, offset + size, _PIECE):
        piece = file.read(start, min(_PIECE, offset + size - start))
        digest.update(piece)
        advance(len(piece))
    return digest.hexdigest()
