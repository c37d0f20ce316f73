"""Keep a checkpoint's files inside its directory, whatever an index or a symbolic link says."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from quantcli.formats import lfs
from quantcli.formats.errors import FormatError
from quantcli.formats.files import DataFile, InputFile


class Folder(ABC):
    """Where a model's files are. `path` is what errors call it."""

    path: Path

    @abstractmethod
    def names(self) -> list[str]:
        """The names of what is in it, in order."""

    @abstractmethod
    def open(self, name: str) -> DataFile | None:
        """The file of a name that somebody else gave, which may have folders; None where there is none.

        Raises:
            FormatError: if the name leads out of the folder, or what is there is no file.
        """


@dataclass(frozen=True)
class Directory(Folder):
    """A directory of this machine."""

    path: Path

    def names(self) -> list[str]:
        """See `Folder.names`."""
        return sorted(entry.name for entry in self.path.iterdir())

    def open(self, name: str) -> DataFile | None:
        """See `Folder.open`."""
        path = resolve_inside(self.path, name)
        return None if path is None else InputFile(path)


def leads_outside(name: str) -> bool:
    """Whether a relative name is none, as either of the systems of this world would read it: an index that was made for one
    must not be a way out on the other."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return not name or "\0" in name or posix.is_absolute() or bool(windows.anchor) or ".." in {*posix.parts, *windows.parts}


def resolve_inside(directory: Path, name: str) -> Path | None:
    """The file `name` of `directory`, None where there is none.

    `name` may have folders. It is refused if it is absolute or climbs out, and so is a symbolic link that leads out of the
    directory, except into the `blobs` of the Hugging Face cache that the directory is a snapshot of
    (`models--ORG--NAME/snapshots/REVISION/FILE -> ../../blobs/HASH`), or those that all repositories of the cache share
    (`models--ORG--NAME/blobs/HASH -> ../../blobs/XX/HASH`).

    Raises:
        FormatError: if the name or the link leads outside, the link leads nowhere, or what is there is no file, or is a
            pointer of Git LFS to one.
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
    except (OSError, RuntimeError):  # Python 3.11 and 3.12 raise RuntimeError for links in a circle
        raise FormatError(path, "a link that cannot be followed") from None
    home = directory.resolve()
    if not target.is_relative_to(home) and not _is_blob(target, home):
        hint = "Replace the link by the file, or give the directory the file is in."
        raise FormatError(path, f"a link that leads out of the model's directory, to {target}", hint=hint)
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket"
        raise FormatError(path, f"expected a file, found {kind}")
    if lfs.is_pointer(target, found.st_size):
        raise FormatError(path, lfs.FAULT, hint=lfs.HINT)
    return path


def _is_blob(target: Path, directory: Path) -> bool:
    """Whether a file is where the Hugging Face cache keeps the contents of a snapshot's files."""
    for place in directory.parents:
        if place.name == "snapshots" and place.parent.name.startswith("models--"):
            repository = place.parent
            shared = repository.parent / "blobs" / target.name[:2]
            return target.parent in (repository / "blobs", shared)
    return False
