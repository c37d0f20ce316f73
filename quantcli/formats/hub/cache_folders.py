"""Paths into the cache of `huggingface_hub`.

`models--ORG--NAME/` has `refs/BRANCH`, files with the name of a commit, and `snapshots/COMMIT/`, the files of a commit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantcli.core.errors import FormatError, ModelError
from quantcli.core.listing import listed

_PREFIX: Final = "models--"
_SNAPSHOTS: Final = "snapshots"
_LONGEST_NAME: Final = 256


@dataclass(frozen=True)
class CachedModel:
    """A model of the hub's cache: `id` is ORG/NAME, `path` the given path, or for a repository its snapshot."""

    id: str
    path: Path

    @property
    def name(self) -> str:
        """The id without the organization."""
        return self.id.rpartition("/")[2]


def find_cached_model(path: Path) -> CachedModel | None:
    """The model that `path` belongs to in the hub's cache: a repository, a snapshot or a file of it; else None.

    Raises:
        FormatError: if a repository has no snapshot.
        ModelError: if it has several, and no branch `main` that names one.
    """
    # A link into the cache counts too. The path itself is tried first, since the files of a snapshot are links.
    for place in dict.fromkeys((Path(os.path.abspath(path)), path.resolve())):  # noqa: PTH100 -- without following links
        repository = place.parent if place.name == _SNAPSHOTS else place
        if _is_repository(repository):
            return CachedModel(_id(repository), _snapshot(repository))
        for folder in place.parents:
            if folder.name == _SNAPSHOTS and _is_repository(folder.parent):
                return CachedModel(_id(folder.parent), path)
    return None


def in_snapshot(path: Path) -> Path:
    """The snapshot, if `path` is a repository of the hub's cache, else `path` itself.

    Raises:
        FormatError, ModelError: as `find_cached_model`.
    """
    cached = find_cached_model(path)
    return path if cached is None else cached.path


def _is_repository(folder: Path) -> bool:
    return folder.name.startswith(_PREFIX) and (folder / _SNAPSHOTS).is_dir()


def _id(repository: Path) -> str:
    return repository.name.removeprefix(_PREFIX).replace("--", "/", 1)


def _snapshot(repository: Path) -> Path:
    """The snapshot of the branch `main`, or the only one."""
    found = sorted(folder for folder in (repository / _SNAPSHOTS).iterdir() if folder.is_dir())
    reference = repository / "refs" / "main"
    if reference.is_file():
        with reference.open("rb") as file:
            commit = file.read(_LONGEST_NAME).decode("ascii", "replace").strip()
        found = [folder for folder in found if folder.name == commit] or found
    if not found:
        raise FormatError(repository, "no snapshot in this folder of the hub's cache", hint="Download the model again.")
    if len(found) > 1:
        names = listed([f"{_SNAPSHOTS}/{folder.name}" for folder in found])
        hint = "Give the path of one of them."
        raise ModelError(f"{repository}: which of its snapshots is the model? {names}", hint=hint)
    return found[0]
