"""Export a GGUF file to a directory that transformers loads: config.json, the tokenizer's files, safetensors."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.architectures.inverse_config import differences, model_types, original_config, unusual_keys
from quantcli.architectures.inverse_mapping import original_tensors, refuse_without_inverse
from quantcli.architectures.loader import Architecture, architectures
from quantcli.conversion.convert import SILENT, Progress, working_threads
from quantcli.conversion.execute import Output, encoders_for, execute, kernels_needed
from quantcli.conversion.export.tokenizer import generation_files, given_tokenizer, tokenizer_files
from quantcli.conversion.plan import PlannedTensor
from quantcli.core.block_types import TYPES, BlockType
from quantcli.core.errors import ModelError, QuantcliError, UnsupportedError, UsageError, warn
from quantcli.core.listing import listed
from quantcli.formats.checkpoint.safetensors_writer import SHARD_BYTES, SafetensorsWriter
from quantcli.formats.gguf.reader import GGUFFile, open_gguf
from quantcli.formats.output_directory import OutputDirectory
from quantcli.kernels import rows
from quantcli.tensors.files import expect_unchanged
from quantcli.tensors.tensor import Tensor, files_of

EXPORT_TYPES: Final = ("F32", "F16", "BF16")

_DTYPES: Final[Mapping[str, str]] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Type -> its name in config.json."""

_POOLING: Final = "sentence_pooling"
"""The key under which a checkpoint's configuration has what sentence-transformers has in files of its own."""

_MODULES: Final = (
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
)

_MOST_LOADED: Final = 1 << 22
"""The most numbers of a tensor that is read to see whether a smaller type holds them all."""


@dataclass(frozen=True)
class Dequantized(Tensor):
    """A packed tensor as F32."""

    source: Tensor

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        packed = np.empty((stop - start, self.source.row_bytes), np.uint8)
        self.source.read(start, stop, packed)
        rows.dequantize(packed, self.source.type, out.view(np.float32))


@dataclass(frozen=True)
class Exported:
    """What was written: the directory, its weights, and the type of most of them."""

    output: Path
    architecture: str
    type: str
    parameters: int
    tensors: int
    output_bytes: int
    seconds: float
    files: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The document of `--json`."""
        return {
            "output": str(self.output),
            "architecture": self.architecture,
            "type": self.type,
            "parameters": self.parameters,
            "tensors": self.tensors,
            "output_bytes": self.output_bytes,
            "files": list(self.files),
            "seconds": self.seconds,
        }


def export(
    file: Path,
    output: Path,
    *,
    type_name: str | None = None,
    tokenizer: Path | None = None,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = SILENT,
) -> Exported:
    """Write a GGUF file as a checkpoint. The directory appears when it is complete.

    Args:
        file: the GGUF file, or the first shard of a split model.
        output: the directory, which must not exist or be empty.
        type_name: the type of all tensors, F32, F16 or BF16. By default that of most weights of the file, and F16 for a
            quantized one; tensors in F32 whose numbers it does not hold stay F32.
        tokenizer: a directory or a file with the tokenizer, which is copied. By default it is made from the vocabulary.
        threads: how many convert; by default one for each processor.
        shard_bytes: the most tensor data in one file.
        progress: callbacks.

    Raises:
        UsageError: for an unknown type.
        FormatError: if the file cannot be read.
        ModelError: if no architecture has the file's tensors.
        UnsupportedError: if the architecture is unknown, or a transform of its tensors has no inverse.
        OutputError: if the directory cannot be written.
    """
    started = time.perf_counter()
    if type_name is not None and type_name not in EXPORT_TYPES:
        raise UsageError(f"unknown type {type_name!r}, expected one of {', '.join(EXPORT_TYPES)}")
    with open_gguf(file) as source, OutputDirectory(output) as directory:
        architecture, config, tensors = _original(source)
        usual = TYPES[type_name or _usual_type(source)]
        plan = [_planned(tensor, usual, everything=type_name is not None) for tensor in tensors]
        texts = _files(source, config, usual, tokenizer)
        _write(directory.temporary, tensors, plan, shard_bytes, working_threads(threads), progress)
        for name, content in texts.items():
            (directory.temporary / name).parent.mkdir(exist_ok=True)
            (directory.temporary / name).write_bytes(content)
        expect_unchanged(files_of(source.tensors.values()))
        paths = (path for path in directory.temporary.rglob("*") if path.is_file())
        written = sorted(str(path.relative_to(directory.temporary)) for path in paths)
    return Exported(
        output=output,
        architecture=architecture.gguf,
        type=usual.name,
        parameters=sum(planned.info.size for planned in plan),
        tensors=len(plan),
        output_bytes=sum((output / name).stat().st_size for name in written),
        seconds=time.perf_counter() - started,
        files=tuple(written),
    )


def _original(source: GGUFFile) -> tuple[Architecture, dict[str, Any], list[Tensor]]:
    """The architecture, config.json and tensors of the checkpoint.

    Of several architectures and model types with the file's value of `general.architecture`, the one that reproduces most
    of its hyperparameters is taken, of these the one whose configuration class knows most of the keys, and then the one of
    that name.
    """
    wanted = source.architecture
    candidates = [architecture for architecture in architectures() if architecture.gguf == wanted]
    if not candidates:
        raise UnsupportedError(f"{source.path}: the architecture {wanted!r} is not supported")
    tensors = {name: _readable(tensor) for name, tensor in source.tensors.items()}
    refuse_without_inverse(candidates[0].declaration, tensors)
    found: list[tuple[tuple[int, ...], Architecture, dict[str, Any], list[Tensor], list[str]]] = []
    failures: list[QuantcliError] = []
    for architecture in candidates:
        for kind in model_types(architecture):
            try:
                config = original_config(architecture, source.metadata, tensors, kind)
                made = original_tensors(architecture.declaration, tensors, architecture.hyperparameters(config))
                other = differences(architecture, config, source.metadata, tensors)
                rank = len(other.told), len(other.derived), unusual_keys(architecture, config), architecture.name != wanted
                found.append((rank, architecture, config, made, other.told))
            except QuantcliError as error:
                failures.append(error)
    if not found:
        if isinstance(failures[0], UnsupportedError):
            raise failures[0]
        raise ModelError(f"{source.path}: no checkpoint of {wanted} has these tensors: {failures[0].message}")
    _, architecture, config, made, lost = min(found, key=lambda entry: entry[0])
    if lost:
        warn(f"{source.path}: config.json does not say the same as the file about {listed(lost)}: check it")
    return architecture, config, made


def _readable(tensor: Tensor) -> Tensor:
    """A tensor in a type that can be computed with."""
    return Dequantized(tensor.name, tensor.shape, TYPES["F32"], tensor) if tensor.type.is_quantized else tensor


def _usual_type(source: GGUFFile) -> str:
    """The type of most weights of matrices where that is one of `EXPORT_TYPES`, or else F16."""
    weights: Counter[str] = Counter()
    for tensor in source.tensors.values():
        if len(tensor.shape) > 1:
            weights[tensor.type.name] += tensor.size
    name = weights.most_common(1)[0][0] if weights else "F32"
    return name if name in EXPORT_TYPES else "F16"


def _planned(tensor: Tensor, usual: BlockType, *, everything: bool) -> PlannedTensor:
    """A tensor in the usual type, or in its own where that holds numbers which the usual one does not."""
    kept = tensor.type.name == "F32" and usual.name != "F32" and not everything and not _holds(usual, tensor)
    chosen = tensor.type if kept else usual
    return PlannedTensor(
        tensor.name, tensor.shape, tensor.type, chosen, "", "option", chosen, importance=False, importance_required=False
    )


def _holds(smaller: BlockType, tensor: Tensor) -> bool:
    """Whether a type holds all numbers of a tensor. Those of a packed one are rounded anyway."""
    if any(isinstance(part, Dequantized) for part in _parts(tensor)):
        return True
    if tensor.size > _MOST_LOADED:
        return False
    values = tensor.load().reshape(1, -1)
    return bool(np.array_equal(rows.dequantize(rows.quantize(values, smaller), smaller), values))


def _parts(tensor: Tensor) -> list[Tensor]:
    from quantcli.tensors.tensor import made_of

    return list(made_of(tensor))


def _files(source: GGUFFile, config: dict[str, Any], usual: BlockType, tokenizer: Path | None) -> dict[str, bytes]:
    """All files but the weights."""
    made = tokenizer_files(source.metadata, source.path) if tokenizer is None else given_tokenizer(tokenizer)
    written = {key: value for key, value in config.items() if key != _POOLING} | {"torch_dtype": _DTYPES[usual.name]}
    documents: dict[str, Any] = {"config.json": written}
    if config.get(_POOLING):
        width = source.get(f"{source.architecture}.embedding_length")
        pooling = {"word_embedding_dimension": width, **config[_POOLING]}
        documents |= {"modules.json": _MODULES, "1_Pooling/config.json": pooling}
    texts = {name: (json.dumps(document, indent=2) + "\n").encode() for name, document in documents.items()}
    return {**texts, **generation_files(source.metadata, source.path), **made}


def _write(
    directory: Path,
    tensors: Sequence[Tensor],
    plan: Sequence[PlannedTensor],
    shard_bytes: int,
    threads: int,
    progress: Progress,
) -> None:
    encoders = encoders_for(plan, None)
    decoded, encoded = kernels_needed([plan], [encoders])
    packed = {part.source.type for tensor in tensors for part in _parts(tensor) if isinstance(part, Dequantized)}
    rows.compile_kernels(decoded | packed, encoded)
    progress.start(sum(tensor.nbytes for tensor in tensors))
    with SafetensorsWriter(directory, [planned.info for planned in plan], shard_bytes) as writer:
        named = {tensor.name: tensor for tensor in tensors}
        execute(named, [Output(plan, encoders, writer)], threads=threads, advance=progress.advance)
