"""Keep a checkpoint's files inside its directory, whatever an index or a symbolic link says."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from quantcli.formats.errors import FormatError


def resolve_inside(directory: Path, name: str) -> Path | None:
    """The file `name` of `directory`, None where there is none.

    `name` may have folders. It is refused if it is absolute or climbs out, and so is a symbolic link that leads out of the
    directory, except into the `blobs` of the Hugging Face cache that the directory is a snapshot of
    (`models--ORG--NAME/snapshots/REVISION/FILE -> ../../blobs/HASH`), or those that all repositories of the cache share
    (`models--ORG--NAME/blobs/HASH -> ../../blobs/XX/HASH`).

    Raises:
        FormatError: if the name or the link leads outside, or the link leads nowhere.
    """
    # A name is judged as both systems would read it: an index made for one must not be a way out on the other.
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if not name or "\0" in name or posix.is_absolute() or windows.anchor or ".." in {*posix.parts, *windows.parts}:
        raise FormatError(directory, f"the file name {name!r} leads out of the model's directory")
    path = directory / name
    if not os.path.lexists(path):
        return None
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        hint = "The download may be incomplete: download the model again."
        raise FormatError(path, "a link to a file that does not exist", hint=hint) from None
    except (OSError, RuntimeError):  # Python 3.11 and 3.12 raise RuntimeError for links in a circle
        raise FormatError(path, "a link that cannot be followed") from None
    home = directory.resolve()
    if not target.is_relative_to(home) and not _is_blob(target, home):
        hint = "Replace the link by the file, or give the directory the file is in."
        raise FormatError(path, f"a link that leads out of the model's directory, to {target}", hint=hint)
    return path


def _is_blob(target: Path, directory: Path) -> bool:
    """Whether a file is where the Hugging Face cache keeps the contents of a snapshot's files."""
    for place in directory.parents:
        if place.name == "snapshots" and place.parent.name.startswith("models--"):
            repository = place.parent
            shared = repository.parent / "blobs" / target.name[:2]
            return target.parent in (repository / "blobs", shared)
    return False
