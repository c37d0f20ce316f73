"""LoRA adapters: a directory with adapter_config.json and the tensors, as peft or mlx-lm saves them.

An adapter changes a weight `W` to `W + scaling * B A`. Other features of these libraries are refused by name, since without
them the output of the model would differ.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Final

from quantcli.core.errors import FormatError
from quantcli.formats.adapters import mlx, peft
from quantcli.formats.adapters.low_rank import Adapter, LowRank
from quantcli.formats.checkpoint.directory import resolve_inside
from quantcli.formats.checkpoint.weights import open_tensor_file
from quantcli.formats.hub.cache_folders import in_snapshot
from quantcli.formats.json_text import parse_object
from quantcli.tensors.files import InputFile

__all__ = ["CONFIG", "Adapter", "LowRank", "open_adapter"]

CONFIG: Final = peft.CONFIG

_MAX_CONFIG: Final = 1 << 24


def open_adapter(path: str | PathLike[str]) -> Adapter:
    """Open the directory of an adapter. No tensor data are read.

    Raises:
        FormatError: if it has no adapter, or a file is damaged.
        UnsupportedError: if the adapter is not LoRA, or LoRA with a feature that is not supported.
        ModelError: if its tensors are inconsistent. The message lists all problems.
    """
    directory = in_snapshot(Path(path))
    config = _read_config(directory)
    is_mlx = mlx.is_mlx_config(config)
    names, assemble = (mlx.WEIGHTS, mlx.assemble) if is_mlx else (peft.WEIGHTS, peft.assemble)
    weights = next((place for name in names if (place := resolve_inside(directory, name)) is not None), None)
    if weights is None:
        raise FormatError(directory, f"no weights of an adapter: looked for {' and '.join(names)}")
    return assemble(directory, config, open_tensor_file(InputFile(weights)))


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        what = "expected the directory of an adapter, found a file" if directory.exists() else "no such directory"
        raise FormatError(directory, what, hint=f"Give the directory that holds {CONFIG}.")
    place = resolve_inside(directory, CONFIG)
    if place is None:
        hint = "Give a directory that peft or mlx-lm has saved."
        raise FormatError(directory, f"not an adapter: no {CONFIG} in it", hint=hint)
    with InputFile(place) as file:
        if file.size > _MAX_CONFIG:
            raise FormatError(place, f"{file.size} bytes, at most {_MAX_CONFIG} expected")
        return parse_object(place, file.read(0, file.size), "the file", unique=False)
