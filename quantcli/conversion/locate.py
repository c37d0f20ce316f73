"""Where the model lies that an argument names: a path, a folder of the hub's cache, or the hub itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from quantcli.formats.errors import UsageError
from quantcli.formats.gguf_parts import part_prefix
from quantcli.formats.hub import HubModel, fetch_model, find_hub_model, stored_model
from quantcli.formats.hub_cache import find_cached_model


@dataclass(frozen=True)
class Location:
    """A model: where it is read, what files made of it are called, and its name on the hub, where it has one."""

    place: Path | HubModel
    name: str
    model_id: str | None = None


def locate(
    model: str | PathLike[str],
    *,
    remote: bool = False,
    dry_run: bool = False,
    started: Callable[[int], Callable[[int], Any]] = lambda total: lambda done: None,
) -> Location:
    """Find a model. One of the hub is downloaded, unless `remote` says that it is read there; with `dry_run` it is read
    where it is. `started` is called before a download: see `formats.hub.fetch_model`.

    Raises:
        UsageError: for `remote` and a path.
        FormatError, ModelError: for a folder of the hub's cache that does not tell its snapshot.
        HubError: if the hub does not give the model.
    """
    hub = find_hub_model(model)
    if hub is None:
        if remote:
            raise UsageError(f"{model}: --remote is for a model of the hub", hint="the hub's models are named ORG/NAME")
        return locate_path(Path(model))
    if remote:
        return Location(hub, hub.name, hub.id)
    found: Path | HubModel = (stored_model(hub) or hub) if dry_run else fetch_model(hub, started=started)
    return Location(found, hub.name, hub.id)


def locate_path(path: Path) -> Location:
    """A model that is a path.

    It is called as its directory is, or its file without the ending and the part's number. In the hub's cache, where
    folders are named after commits, it is called as on the hub.
    """
    cached = find_cached_model(path)
    if path.is_file():
        name = part_prefix(path).name if path.suffix == ".gguf" else path.stem
        if name != "model":
            return Location(path, name, cached.id if cached else None)
    if cached:
        return Location(cached.path, cached.name, cached.id)
    # A link to a file has the place of the link; for a directory that of its target says more.
    folder = path.resolve() if path.is_dir() else Path(os.path.abspath(path)).parent  # noqa: PTH100
    return Location(path, folder.name)
