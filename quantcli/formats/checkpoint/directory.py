"""The directory of a model, which none of its files may be outside of, whatever an index or a symbolic link says."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from quantcli.core.errors import FormatError
from quantcli.tensors import lfs
from quantcli.tensors.files import DataFile, InputFile


class Folder(ABC):
    """The local or remote folder of a model's files. `path` is its name in errors."""

    path: Path

    @abstractmethod
    def names(self) -> list[str]:
        """The names of its entries, sorted."""

    @abstractmethod
    def open(self, name: str) -> DataFile | None:
        """The file of an untrusted relative name, which may have directories; None if there is no such file.

        Raises:
            FormatError: if the name leads out of the folder, or does not name a file.
        """


@dataclass(frozen=True)
class Directory(Folder):
    """A local directory."""

    path: Path

    def names(self) -> list[str]:
        """See `Folder.names`."""
        return sorted(entry.name for entry in self.path.iterdir())

    def open(self, name: str) -> DataFile | None:
        """See `Folder.open`."""
        path = resolve_inside(self.path, name)
        return None if path is None else InputFile(path)


def leads_outside(name: str) -> bool:
    """Whether a relative name leads out of its directory, by the rules of POSIX or of Windows.

    Both are applied on every system: an index made for one of them must be safe on the other.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return not name or "\0" in name or posix.is_absolute() or bool(windows.anchor) or ".." in {*posix.parts, *windows.parts}


def resolve_inside(directory: Path, name: str) -> Path | None:
    """The path of the file `name` in `directory`; None if there is no such file.

    `name` may have directories. It is refused if it is absolute or has `..`. A link out of the directory is refused too,
    unless the directory is a snapshot of the Hugging Face cache and the link leads to its blobs:

        models--ORG--NAME/snapshots/REVISION/FILE -> ../../blobs/HASH
        models--ORG--NAME/blobs/HASH -> ../../blobs/XX/HASH            blobs that all repositories share

    Raises:
        FormatError: if the name or the link leads outside, the link is broken, or the target is not a file or is a Git LFS
            pointer.
    """
    if leads_outside(name):
        raise FormatError(directory, f"the file name {name!r} leads out of the model's directory")
    path = directory / name
    if not os.path.lexists(path):
        return None
    try:
        target = path.resolve(strict=True)
        found = target.stat()
    except FileNotFoundError:
        hint = "The download may be incomplete: download the model again."
        raise FormatError(path, "a link to a file that does not exist", hint=hint) from None
    except (OSError, RuntimeError):  # Python 3.11 and 3.12 raise RuntimeError for a cycle of links
        raise FormatError(path, "a link that cannot be followed") from None
    home = directory.resolve()
    if not target.is_relative_to(home) and not _is_blob(target, home):
        hint = "Replace the link by the file, or give the directory the file is in."
        raise FormatError(path, f"a link that leads out of the model's directory, to {target}", hint=hint)
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would block
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket"
        raise FormatError(path, f"expected a file, found {kind}")
    if lfs.is_pointer(target, found.st_size):
        raise FormatError(path, lfs.FAULT, hint=lfs.HINT)
    return path


def _is_blob(target: Path, directory: Path) -> bool:
    """Whether `target` is a blob of the Hugging Face cache that `directory` is a snapshot of."""
    for place in directory.parents:
        if place.name == "snapshots" and place.parent.name.startswith("models--"):
            repository = place.parent
            shared = repository.parent / "blobs" / target.name[:2]
            return target.parent in (repository / "blobs", shared)
    return False
