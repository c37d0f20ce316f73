"""A checkpoint: a model's configuration, its lazy tensors and its side files, whatever the layout on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from quantcli.core.errors import FormatError, warn
from quantcli.formats.checkpoint.directory import Directory, Folder, resolve_inside
from quantcli.formats.checkpoint.weights import open_folder, open_single
from quantcli.formats.json_text import parse_object, parse_objects
from quantcli.tensors.files import DataFile, InputFile
from quantcli.tensors.tensor import Tensor, files_of

MAX_JSON: Final = 1 << 28
"""The most bytes of a side file. The largest known, the tokenizer.json of big vocabularies, have some 40 million."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model as it was published.

    path        the path that was opened
    directory   the directory of the side files
    config      config.json; for sentence-transformers with the pooling configuration under `sentence_pooling`
    tensors     the lazy tensors by their names in the checkpoint

    Close it, or use it in a `with`, to close its files.
    """

    path: Path
    directory: Path
    config: dict[str, Any] = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    interrupt: Callable[[], None] = field(default=_nothing, repr=False)
    """Makes blocking reads fail, so that a conversion can stop while other threads read."""
    merged_files: tuple[DataFile, ...] = field(default=(), repr=False)
    """Files of adapters whose tensors were merged into these."""
    _release: Callable[[], None] = field(default=_nothing, repr=False)

    def file(self, name: str) -> Path | None:
        """The path of a side file such as `tokenizer.model`; None if there is no such file.

        Raises:
            FormatError: if it is a link to a file outside the directory, or a broken link.
        """
        return resolve_inside(self.directory, name)

    def json(self, name: str) -> dict[str, Any] | None:
        """The contents of a side file such as `tokenizer_config.json`; None if there is no such file.

        Raises:
            FormatError: if it is not a JSON object; and as `file`.
        """
        path = self.file(name)
        return None if path is None else read_json(path)

    def generation_config(self) -> dict[str, Any]:
        """The contents of generation_config.json; empty without one. It only recommends, so a broken file is a warning.

        Raises:
            FormatError: as `file`.
        """
        path = self.file("generation_config.json")
        try:
            return {} if path is None else read_json(path)
        except FormatError as error:
            warn(f"{error.message}; it is ignored")
            return {}

    def close(self) -> None:
        """Close the files. A tensor that is read later opens its file again."""
        for file in files_of(self.tensors.values()):
            file.close()
        self._release()

    def owning(self, release: Callable[[], None], *, interrupt: Callable[[], None]) -> Checkpoint:
        """The same checkpoint, which calls `release` when it is closed and has `interrupt`."""
        return replace(self, _release=release, interrupt=interrupt)

    def without_tensors(self) -> Checkpoint:
        """Its configuration and side files alone, as a value that can be pickled."""
        return replace(self, tensors={}, merged_files=(), interrupt=_nothing, _release=_nothing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Open a Hugging Face directory, or one file of tensors with its config.json beside it. No tensor data are read.

    A directory holds one safetensors file or shards, with an index or complete by their names. Without safetensors, the
    same holds for PyTorch files (`.bin`, `.pt`, `.pth`, `.ckpt`).

    Raises:
        FormatError: if nothing is at `path`, config.json is missing, or a file is damaged or of another format.
        UnsafePickleError: if a PyTorch file is more than a state dict.
        ModelError: if there is no model in the directory, shards and index disagree, or `path` is one shard of several.
        UnsupportedError: if the checkpoint has a layout that is not supported.
    """
    path = Path(path)
    if not path.exists():
        hub = "A model of the Hugging Face hub is ORG/NAME, or ORG/NAME@main where a directory ORG is here."
        raise FormatError(path, "no such file or directory", hint=hub)
    if path.is_dir():
        return read_checkpoint(path, path, Directory(path))
    if path.is_file():
        InputFile(path)  # refuses Git LFS pointers and the like, before a missing config.json is reported
    return Checkpoint(path, path.parent, _read_configuration(path.parent), open_single(path))


def read_checkpoint(path: Path, directory: Path, folder: Folder) -> Checkpoint:
    """The checkpoint called `path` in errors, with its side files in `directory` and its tensors in `folder`.

    Raises:
        FormatError, UnsafePickleError, ModelError, UnsupportedError: as `open_checkpoint`.
    """
    return Checkpoint(path, directory, _read_configuration(directory), open_folder(folder))


def _read_configuration(directory: Path) -> dict[str, Any]:
    return _read_config(directory) | _read_pooling(directory)


_HINTS: Final = (
    ("adapter_config.json", "This is an adapter: give the directory of its base model."),
    ("params.json", "This is the original layout of Meta or Mistral: get the model in the Hugging Face layout."),
    ("model_index.json", "This is a pipeline of diffusers: give one of its models."),
)
"""Files by which a directory without config.json is recognised, and the hint for it."""


def _read_config(directory: Path) -> dict[str, Any]:
    config = resolve_inside(directory, "config.json")
    if config is None:
        if not any(directory.iterdir()):
            raise FormatError(directory, "the directory is empty", hint="Give the directory that holds a model.")
        hints = (hint for name, hint in _HINTS if (directory / name).exists())
        raise FormatError(
            directory / "config.json",
            "no such file; it has the model's architecture",
            hint=next(hints, "Put the model's config.json beside its tensors."),
        )
    return read_json(config)


def _read_pooling(directory: Path) -> dict[str, Any]:
    """`{"sentence_pooling": ...}`, the pooling configuration of sentence-transformers; empty without one."""
    modules = resolve_inside(directory, "modules.json")
    if modules is None:
        return {}
    for module in parse_objects(modules, _read_bytes(modules), "the file"):
        if str(module.get("type")).endswith("Pooling"):
            place = f"{module.get('path')}/config.json"
            found = resolve_inside(directory, place)
            if found is None:
                raise FormatError(directory / place, f"no such file; {modules.name} names it for the pooling")
            return {"sentence_pooling": read_json(found)}
    return {}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a small file.

    Raises:
        FormatError: if it is not a JSON object, or larger than `MAX_JSON`.
    """
    return parse_object(path, _read_bytes(path), "the file", unique=False)


def _read_bytes(path: Path) -> bytes:
    with InputFile(path) as file:
        if file.size > MAX_JSON:
            raise FormatError(path, f"{file.size} bytes, at most {MAX_JSON} expected")
        return file.read(0, file.size)
