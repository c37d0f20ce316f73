"""Loads a GGUF file to run it: its model and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

from quantcli.core.block_types import BlockType
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import Metadata
from quantcli.runner.model import Model
from quantcli.runner.model_file import ModelFile
from quantcli.runner.text.tokenizer import Tokenizer, load_tokenizer
from quantcli.runner.weights import Observer


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its file's metadata. Weights are memory-mapped, except those that were quantized on load."""

    path: Path
    metadata: Metadata
    model: Model
    parameters: int
    """The number of weights in all tensors."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer, loaded on first use. Raises ModelError where there is none."""
        return load_tokenizer(self.metadata)


def load_model(
    path: str | PathLike[str],
    packing: BlockType | None = None,
    architecture_file: Path | None = None,
    observer: Observer | None = None,
) -> LoadedModel:
    """Load a model from a GGUF file or the first shard of one. With `packing`, float matrices are quantized to that type.

    `architecture_file` replaces the built-in architecture file.

    Raises:
        FormatError: if it is not a valid GGUF file.
        UnsupportedError, ModelError: if its model cannot be run; see `Model`.
    """
    with open_gguf(path) as file:
        return prepare_model(file, packing, observer, architecture_file=architecture_file)


def prepare_model(
    file: ModelFile,
    packing: BlockType | None = None,
    observer: Observer | None = None,
    *,
    architecture_file: Path | None = None,
) -> LoadedModel:
    """As `load_model`, for an open file. `observer` is called with the inputs of every matrix multiplication.

    Raises:
        UnsupportedError, ModelError: if its model cannot be run; see `Model`.
    """
    return LoadedModel(
        path=file.path,
        metadata=file.metadata,
        model=Model(file, packing, observer, architecture_file=architecture_file),
        parameters=sum(tensor.size for tensor in file.tensors.values()),
    )
