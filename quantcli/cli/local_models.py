"""The model that the argument of a command means: a file, a directory, or one of the hub, which is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantcli.cli.output import byte_progress


def local_model(model: Path) -> Path:
    """The path of a model. One of the hub is downloaded to the hub's cache, with a progress bar: its GGUF file, or, where
    it has none, its checkpoint. `formats.hub.gguf_files` says which names are those of the hub.

    Raises:
        HubError: if the hub does not give the model.
        ModelError: if its repository has neither a GGUF file nor a checkpoint.
    """
    if model.exists():
        return model
    from quantcli.formats.hub.gguf_files import fetch_gguf, parse_hub_gguf
    from quantcli.formats.hub.models import fetch_model

    wanted = parse_hub_gguf(str(model))
    if wanted is None:
        return model
    with byte_progress("downloading") as bar:

        def started(total: int) -> Callable[[int], Any]:
            bar.reset(total)
            return bar.update  # type: ignore[no-any-return]

        return fetch_gguf(wanted, started=started) or fetch_model(wanted.model, started=started)
