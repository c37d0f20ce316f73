"""Locate the model that an argument names: at a path, in the hub's cache, or on the hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from quantcli.core.errors import UsageError
from quantcli.formats.gguf.shards import shard_prefix
from quantcli.formats.hub.cache_folders import find_cached_model
from quantcli.formats.hub.models import HubModel, fetch_model, find_hub_model, stored_model


@dataclass(frozen=True)
class Location:
    """The place a model is read from, its name for output files, and its id on the hub, if it has one."""

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
    """Find a model.

    A model of the hub is downloaded. With `remote` it is read from the hub instead. With `dry_run` it is read from the
    cache if it is there, else from the hub. `started` is called before a download: see `formats.hub.models.fetch_model`.

    Raises:
        UsageError: for `remote` with a path.
        FormatError, ModelError: for a folder of the hub's cache without a snapshot, or with several.
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
    """Find a model at a path.

    Its name is that of its directory, or that of its file without suffix and shard number. In the hub's cache, where
    directories are named after commits, it is the name on the hub.
    """
    cached = find_cached_model(path)
    if path.is_file():
        name = shard_prefix(path).name if path.suffix == ".gguf" else path.stem
        if name != "model":
            return Location(path, name, cached.id if cached else None)
    if cached:
        return Location(cached.path, cached.name, cached.id)
    # A link to a file keeps the directory of the link. A link to a directory takes the name of its target.
    folder = path.resolve() if path.is_dir() else Path(os.path.abspath(path)).parent  # noqa: PTH100
    return Location(path, folder.name)
