"""Find the files with a model's tensors, and open them as one.

In a directory, safetensors take precedence over PyTorch files, and one file over shards, as in `transformers`. Shards
without an index are accepted if they are complete by their names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantcli.core.errors import FormatError, ModelError, UnsafePickleError, UnsupportedError
from quantcli.core.listing import listed
from quantcli.formats.checkpoint.directory import Folder
from quantcli.formats.checkpoint.pytorch import open_pytorch
from quantcli.formats.checkpoint.safetensors import open_safetensors
from quantcli.formats.json_text import parse_object
from quantcli.tensors import lfs
from quantcli.tensors.files import DataFile, InputFile
from quantcli.tensors.tensor import Tensor

Tensors = dict[str, Tensor]

_MAX_INDEX: Final = 100_000_000

_NUMBERED: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
"""The name of a shard."""

# --- one file -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kind:
    """A file format, recognised by its first bytes: its reader, or the error and hint if it is refused."""

    pattern: re.Pattern[bytes]
    read: Callable[[DataFile], Tensors] | None = None
    refusal: str = ""
    hint: str | None = None


_KINDS: Final = (
    # In this order: the length of a safetensors header may look like a pickle, and byte 8 of a GGUF file may be a brace.
    _Kind(re.compile(rb"GGUF"), None, "a GGUF file, expected a checkpoint"),
    _Kind(re.compile(re.escape(lfs.START)), None, lfs.FAULT, lfs.HINT),
    _Kind(re.compile(rb"(?s).{8}\{"), open_safetensors),
    _Kind(re.compile(rb"PK\x03\x04|\x80[\x02-\x05]"), open_pytorch),
    _Kind(
        re.compile(rb"(sys_info|pickle|storages|tensors)\0"), None,
        "a PyTorch file in the layout before 0.1.10, a tar archive",
        "Load it with a PyTorch of today and save it again.",
    ),
    _Kind(re.compile(rb"\s*\{"), None, "a JSON file, expected tensors", "Give the directory that holds it."),
)  # fmt: skip


def open_tensor_file(file: DataFile) -> Tensors:
    """The lazy tensors of one checkpoint file. Its format is recognised by its first bytes, not by its name.

    Raises:
        FormatError: if it is missing, damaged, or not a checkpoint.
        UnsafePickleError: if it is a PyTorch file that is more than a state dict.
        UnsupportedError: if it is a checkpoint in a format that is not supported.
    """
    with file:
        start = file.read(0, min(32, file.size))
    if not start:
        raise FormatError(file.path, "the file is empty", hint="Download the file again.")
    kind = next((kind for kind in _KINDS if kind.pattern.match(start)), None)
    if kind is None and file.path.suffix == ".safetensors":
        return open_safetensors(file)  # which has the best error message for it
    if kind is None:
        raise FormatError(file.path, f"neither safetensors nor a PyTorch file: it starts with {start[:8]!r}")
    if kind.read is None:
        raise FormatError(file.path, kind.refusal, hint=kind.hint)
    return kind.read(file)


def open_single(path: Path) -> Tensors:
    """The lazy tensors of a model that consists of the file `path`.

    Raises:
        ModelError: if it is one shard of several; and as `open_tensor_file`.
    """
    shard = _NUMBERED.fullmatch(path.name)
    if shard and int(shard["count"]) > 1:
        what = f"{path}: shard {int(shard['number'])} of {int(shard['count'])}, expected the whole model"
        raise ModelError(what, hint="Give the directory that holds all shards.")
    return open_tensor_file(InputFile(path))


# --- a directory ----------------------------------------------------------------------------------------------------------

_SIDE_FILES: Final = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|tokenizer|adapter_model)[._-].*")
"""Files that trainers leave beside a model."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """The file names of a format: the usual name of a whole model, and the suffixes of other names."""

    name: str
    suffixes: tuple[str, ...]

    def others(self, names: Iterable[str]) -> set[str]:
        """The files in this format, by suffix, without side files of trainers."""
        return {
            name
            for name in names
            if "/" not in name and name.endswith(self.suffixes) and not _SIDE_FILES.fullmatch(name)
        }


_LAYOUTS: Final = (
    _Layout("model.safetensors", (".safetensors",)),
    _Layout("pytorch_model.bin", (".bin", ".pt", ".pth", ".ckpt")),
)


def weight_files(names: Iterable[str]) -> list[str]:
    """The files of a directory with these `names` that `open_folder` opens, with the index."""
    names = set(names)
    for layout in _LAYOUTS:
        index = {layout.name + ".index.json"} & names
        found = {layout.name} & names or index | layout.others(names)
        if found:
            return sorted(found)
    return []


def open_folder(folder: Folder) -> Tensors:
    """The lazy tensors of a model directory.

    Raises:
        FormatError: if a file is missing or damaged.
        ModelError: if there are no or several models, or shards and index disagree. The message lists all problems.
        UnsupportedError: for a format that is not supported.
    """
    names = folder.names()
    for layout in _LAYOUTS:
        if (file := folder.open(layout.name)) is not None:
            return open_tensor_file(file)
        if (index := folder.open(layout.name + ".index.json")) is not None:
            return _open_indexed(folder, index)
        others = layout.others(names)
        if others:
            return _open_unindexed(folder, sorted(others))
    raise ModelError(
        f"{folder.path}: no model in this directory: found {listed(names)}, expected *.safetensors or PyTorch files",
        hint="Give the directory that holds the model's tensors beside its config.json.",
    )


def _open_indexed(folder: Folder, index: DataFile) -> Tensors:
    with index:
        if index.size > _MAX_INDEX:
            raise FormatError(index.path, f"an index of {index.size} bytes, at most {_MAX_INDEX} expected")
        places = parse_object(index.path, index.read(0, index.size), "the index").get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(shard, str) for shard in places.values()):
        raise FormatError(index.path, "weight_map is not an object of file names")
    shards, problems = _open_shards(folder, sorted(set(places.values())))
    problems += _disagreements(places, shards)
    if problems:
        raise _contradiction(index.path, problems)
    return {name: shards[shard][name] for shard in shards for name in shards[shard]}


def _open_unindexed(folder: Folder, names: list[str]) -> Tensors:
    if len(names) == 1 and not _NUMBERED.fullmatch(names[0]):
        file = folder.open(names[0])
        assert file is not None  # it was listed
        return open_tensor_file(file)
    numbered = [_NUMBERED.fullmatch(name) for name in names]
    series = {(match["stem"], match["count"], match["suffix"]) for match in numbered if match}
    if None in numbered or len(series) != 1:
        what = f"{folder.path}: which of these files is the model? {listed(names)}"
        raise ModelError(what, hint="Give the path of the file itself.")
    ((stem, count, suffix),) = series
    expected = [f"{stem}-{number:05}-of-{count}{suffix}" for number in range(1, int(count) + 1)]
    shards, problems = _open_shards(folder, expected)
    problems += _doubles(shards)
    if problems:
        raise _contradiction(folder.path, problems)
    return {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def _open_shards(folder: Folder, names: Iterable[str]) -> tuple[dict[str, Tensors], list[str]]:
    """The shards that could be opened, by name, and the problems with the others."""
    shards: dict[str, Tensors] = {}
    missing: list[str] = []
    problems: list[str] = []
    for name in names:
        try:
            file = folder.open(name)
            if file is None:
                missing.append(name)
            else:
                shards[name] = open_tensor_file(file)
        except UnsafePickleError:
            raise
        except (FormatError, UnsupportedError) as error:
            problems.append(error.message)
    return shards, ([f"missing shards: {listed(missing)}"] if missing else []) + problems


def _disagreements(places: Mapping[str, str], shards: Mapping[str, Tensors]) -> list[str]:
    """The disagreements between the index and the shards that were opened."""
    lost = [f"{name} ({shard})" for name, shard in places.items() if shard in shards and name not in shards[shard]]
    unlisted = [f"{name} ({shard})" for shard, tensors in shards.items() for name in tensors if name not in places]
    return (
        ([f"tensors missing from their shard: {listed(lost)}"] if lost else [])
        + ([f"tensors the index does not name: {listed(unlisted)}"] if unlisted else [])
        + _doubles(shards)
    )


def _doubles(shards: Mapping[str, Tensors]) -> list[str]:
    holders: dict[str, list[str]] = {}
    for shard, tensors in shards.items():
        for name in tensors:
            holders.setdefault(name, []).append(shard)
    doubles = [f"{name} ({', '.join(where)})" for name, where in holders.items() if len(where) > 1]
    return [f"tensors in several shards: {listed(doubles)}"] if doubles else []


def _contradiction(path: Path, problems: list[str]) -> ModelError:
    return ModelError(
        f"{path}: " + "; ".join(problems), hint="The download may be incomplete: download the model again."
    )
