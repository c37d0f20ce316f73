"""The source of a conversion in GGUF terms, from a checkpoint or a GGUF file: lazy tensors by name, and metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from quantcli.architectures.loader import Architecture, find_architecture
from quantcli.conversion.lora.merge import AdapterRequest, merged
from quantcli.conversion.metadata.general import general_metadata
from quantcli.conversion.vocabulary import vocabulary_metadata
from quantcli.core.errors import UsageError, warn
from quantcli.formats.adapters import CONFIG as ADAPTER_CONFIG
from quantcli.formats.checkpoint.checkpoint import Checkpoint, open_checkpoint
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import MAGIC, Metadata
from quantcli.formats.hub.models import HubModel
from quantcli.formats.hub.remote import open_remote
from quantcli.formats.prequantized import decoded_checkpoint
from quantcli.tensors.files import DataFile, InputFile
from quantcli.tensors.tensor import Tensor, files_of

_SUFFIXES: Final = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json"})
"""The suffixes of checkpoints and their indexes."""


@dataclass(frozen=True)
class Source:
    """A model to be written as GGUF: its tensors by their GGUF names, and its metadata without what a recipe adds."""

    path: Path
    paths: tuple[Path, ...]
    """The local files that hold the tensors."""
    architecture: str
    tensors: dict[str, Tensor]
    metadata: Metadata
    source_bytes: int
    """Bytes of the tensors as they are stored."""
    interrupt: Callable[[], None] = field(default=lambda: None, repr=False)
    """Makes blocking network reads fail. Safe to call from any thread."""
    files: tuple[DataFile, ...] = field(default=(), repr=False)
    """The files that tensors are read from, also those of adapters."""


@contextmanager
def open_source(
    path: Path | HubModel,
    *,
    model_id: str | None = None,
    architecture_file: Path | None = None,
    pre_tokenizer: str | None = None,
    adapters: Sequence[AdapterRequest] = (),
    as_reference: bool = False,
) -> Iterator[Source]:
    """Open a checkpoint or a GGUF file for conversion. Its files are closed on leaving.

    All arguments but the first are for checkpoints only.

    Args:
        path: a path, or a model that is read from the hub without downloading it.
        model_id: the name of the model, where its directory has another: `ORG/NAME` of the hub.
        architecture_file: describes an unknown architecture.
        pre_tokenizer: the name of the pre-tokenizer, if it is not recognised.
        adapters: LoRA adapters to merge.
        as_reference: write the metadata of llama.cpp's converter, even where transformers reads the checkpoint differently.

    Raises:
        FormatError, UnsupportedError, ModelError: as the readers and the architecture's mapping.
        HubError: if the hub does not give the model.
        UsageError: for adapters beside a GGUF file.
    """
    if isinstance(path, Path) and path.is_file() and is_gguf(path):
        if adapters:
            hint = "Give the checkpoint the file was made from."
            raise UsageError(f"{path}: --lora is for a checkpoint, not for a GGUF file", hint=hint)
        with open_gguf(path) as file:
            name = str(file.get("general.architecture", ""))
            tensors: dict[str, Tensor] = dict(file.tensors)
            stored = sum(tensor.nbytes for tensor in tensors.values())
            yield Source(path, file.paths, name, tensors, file.metadata, stored, files=files_of(file.tensors.values()))
    else:
        with open_checkpoint(path) if isinstance(path, Path) else open_remote(path) as checkpoint:
            # Lazy views, each a checkpoint made of the one before.
            decoded = decoded_checkpoint(checkpoint)
            architecture = find_architecture(decoded.config, architecture_file)
            _warn_of_adapter(checkpoint, adapters)
            with merged(decoded, architecture, adapters) as view:
                stored = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
                files = files_of(checkpoint.tensors.values())
                paths = tuple(file.path for file in files if isinstance(file, InputFile))
                tensors = {tensor.name: tensor for tensor in architecture.tensors(view.tensors, view.config)}
                metadata = checkpoint_metadata(
                    view,
                    architecture,
                    list(tensors.values()),
                    model_id=model_id,
                    pre_tokenizer=pre_tokenizer,
                    as_reference=as_reference,
                )
                read = (*files, *view.merged_files)
                yield Source(view.path, paths, architecture.gguf, tensors, metadata, stored, view.interrupt, read)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is that of a checkpoint, and not of a GGUF file: a directory, or a file with the suffix of one."""
    return path.is_dir() or (path.is_file() and path.suffix in _SUFFIXES and not is_gguf(path))


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does."""
    with InputFile(path) as file:
        return file.size >= len(MAGIC) and file.read(0, len(MAGIC)) == MAGIC


def _warn_of_adapter(checkpoint: Checkpoint, adapters: Sequence[AdapterRequest]) -> None:
    """Warn of an adapter in the model's directory, which transformers would load with the model."""
    directory = checkpoint.directory
    lies_there = checkpoint.file(ADAPTER_CONFIG) is not None
    if lies_there and not any(request.path.resolve() == directory.resolve() for request in adapters):
        warn(f"{directory}: this directory has an adapter too, which is not merged; --lora {directory} merges it")


def checkpoint_metadata(
    checkpoint: Checkpoint,
    architecture: Architecture,
    tensors: Sequence[Tensor],
    *,
    model_id: str | None,
    pre_tokenizer: str | None,
    as_reference: bool,
) -> Metadata:
    """The metadata of a checkpoint whose GGUF tensors are `tensors`; the other arguments are those of `open_source`."""
    rows = next((tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight"), None)
    return (
        architecture.early_metadata(checkpoint.config)
        | general_metadata(checkpoint, architecture.gguf, tensors, model_id=model_id, as_reference=as_reference)
        | architecture.metadata(checkpoint.config)
        | vocabulary_metadata(
            checkpoint,
            rows,
            rules=architecture.vocabulary,
            pre_tokenizer=pre_tokenizer,
            configuration=architecture.hyperparameters(checkpoint.config),
            as_reference=as_reference,
        )
    )
