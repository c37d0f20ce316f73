"""Convert a LoRA adapter to a GGUF adapter, which llama.cpp applies to a model with `--lora FILE`.

Names, order, types and metadata are those of `convert_lora_to_gguf.py` of llama.cpp. A GGUF adapter has one `alpha` for all
layers. Where a layer's scaling differs (rsLoRA, `alpha_pattern`), the factor is multiplied into its matrix B. llama.cpp's
converter loses such scalings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np

from quantcli.architectures.loader import find_architecture
from quantcli.architectures.transforms import F16, F32, as_float32, transpose
from quantcli.conversion.convert import SILENT, Conversion, Progress, working_threads
from quantcli.conversion.execute import Output, encoders_for, execute, kernels_needed
from quantcli.conversion.locate import locate_path
from quantcli.conversion.metadata.general import general_metadata
from quantcli.conversion.metadata.output import QUANTIZATION_VERSION
from quantcli.conversion.plan import PlannedTensor
from quantcli.core.block_types import TYPES, BlockType
from quantcli.core.errors import FormatError, UnsupportedError, UsageError
from quantcli.core.listing import listed
from quantcli.formats.adapters import CONFIG, Adapter, LowRank, open_adapter
from quantcli.formats.checkpoint.checkpoint import Checkpoint, read_json
from quantcli.formats.gguf.spec import Metadata, ValueType, array, f32, u32
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.formats.hub.cache_folders import in_snapshot
from quantcli.formats.hub.models import fetch_file, find_hub_model
from quantcli.formats.output_file import refuse_overwriting
from quantcli.kernels.rows import compile_kernels
from quantcli.tensors.derived import Computed, Renamed
from quantcli.tensors.files import expect_unchanged
from quantcli.tensors.tensor import Tensor, TensorInfo

ADAPTER_TYPES: Final = ("F32", "F16", "BF16", "Q8_0")
"""The tensor types of the matrices A and B."""

_EMBEDDING: Final = "token_embd.weight"

_GIVE_BASE: Final = "Give the base model, or its config.json, with --base."

_MERGE: Final = "Merge it into the model: `quantize MODEL --lora ADAPTER --type TYPE`."


def convert_adapter(
    adapter: str | PathLike[str],
    type: str = "F32",
    output: str | PathLike[str] | None = None,
    *,
    base: str | PathLike[str] | None = None,
    architecture_file: Path | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Conversion:
    """Convert a LoRA adapter, a directory as peft or mlx-lm saves it, to a GGUF adapter.

    Args:
        adapter: the directory.
        type: one of `ADAPTER_TYPES`. Rows that do not divide into blocks of Q8_0 become F16.
        output: a file or an existing directory; by default `ADAPTER-TYPE.gguf` in the current directory.
        base: the base model, of which only config.json is needed: a directory, config.json itself, or a model of the hub;
            by default the one that the adapter names.
        architecture_file: describes an unknown architecture.
        threads: by default one for each processor.
        overwrite: replace an existing output.
        progress: where to report to.

    Raises:
        UsageError: for an unknown type, or if the adapter does not name its base model.
        FormatError, ModelError, UnsupportedError: if the adapter cannot be read, does not fit the model, or has what a GGUF
            adapter cannot hold.
        HubError: if the hub does not give the base model's config.json.
        OutputError: if the output exists (unless `overwrite`) or cannot be written. No partial file is left.
    """
    started = time.perf_counter()
    if type not in ADAPTER_TYPES:
        raise UsageError(f"{type!r} is not a type for adapters", hint=f"the types are {', '.join(ADAPTER_TYPES)}")
    with open_adapter(adapter) as opened:
        _refuse_what_is_not_low_rank(opened)
        config = _base_config(opened, base)
        architecture = find_architecture(config, architecture_file)
        adapted = architecture.adapted({**opened.whole, **opened.pairs}, config)
        alpha, pairs = _with_alpha(opened, [entry for entry in adapted if isinstance(entry, LowRank)])
        whole = [entry for entry in adapted if isinstance(entry, Tensor)]
        tensors = {tensor.name: tensor for tensor in (*whole, *(half for pair in pairs for half in _halves(pair)))}
        plan = [_planned(tensor, TYPES[type]) for tensor in tensors.values()]
        metadata = _metadata(opened, architecture.gguf, [*whole, *map(_measured, pairs)], alpha)
        path = _output_path(opened.path, type, None if output is None else Path(output))
        writer = GGUFWriter(path, metadata, [planned.info for planned in plan], overwrite=overwrite, every_dimension=True)
        refuse_overwriting([file.path for file in opened.files()], [path])
        with writer:
            _write(tensors, plan, writer, working_threads(threads), progress)
            expect_unchanged(opened.files())
        stored = sum(tensor.nbytes for tensor in opened.tensors())
        return Conversion(
            shards=writer.shards,
            dry_run=False,
            type=type,
            architecture=architecture.gguf,
            source_bytes=stored,
            seconds=time.perf_counter() - started,
            plan=plan,
        )


def _write(
    tensors: Mapping[str, Tensor], plan: Sequence[PlannedTensor], writer: GGUFWriter, threads: int, progress: Progress
) -> None:
    encoders = encoders_for(plan, None)
    compile_kernels(*kernels_needed([plan], [encoders]))
    progress.start(sum(tensor.nbytes for tensor in tensors.values()))
    execute(tensors, [Output(plan, encoders, writer)], threads=threads, advance=progress.advance)


def _refuse_what_is_not_low_rank(adapter: Adapter) -> None:
    strange = [name for name in adapter.whole if "_layernorm" not in name and ".norm" not in name]
    strange += [f"{pair.module}.lora_magnitude_vector" for pair in adapter.pairs.values() if pair.magnitude is not None]
    strange += [f"{pair.module}.lora_B.bias" for pair in adapter.pairs.values() if pair.bias is not None]
    if strange:
        raise UnsupportedError(f"{adapter.path}: a GGUF adapter cannot hold {listed(strange, most=5)}", hint=_MERGE)
    if adapter.config.get("invocation_string") and not adapter.config.get("alora_invocation_tokens"):
        what = f"{adapter.path}: invocation_string without alora_invocation_tokens"
        raise UnsupportedError(what, hint=f"Put the tokens into {CONFIG}.")


# --- the base model -------------------------------------------------------------------------------------------------------


def _base_config(adapter: Adapter, base: str | PathLike[str] | None) -> dict[str, Any]:
    """The config.json of the base model."""
    if base is None:
        named = adapter.config.get("base_model_name_or_path")
        if not isinstance(named, str) or not named:
            raise UsageError(f"{adapter.path}: {CONFIG} does not name the base model", hint=_GIVE_BASE)
        base = named
    hub = find_hub_model(base)
    if hub is not None:
        return read_json(fetch_file(hub, "config.json"))
    path = in_snapshot(Path(base))
    config = path / "config.json" if path.is_dir() else path
    if not config.exists():
        raise FormatError(config, "no such file; the architecture of the base model is read from it", hint=_GIVE_BASE)
    return read_json(config)


# --- scalings -------------------------------------------------------------------------------------------------------------


def _with_alpha(adapter: Adapter, pairs: Sequence[LowRank]) -> tuple[float, list[LowRank]]:
    """The `alpha` of the file, and the pairs, rescaled where `alpha / rank` is not their scaling.

    Readers compute the scaling of every pair as `alpha / rank`. llama.cpp takes an alpha of 0 for a scaling of 1, so 0 is
    never written.
    """
    wanted = [pair.scaling * pair.rank for pair in pairs]
    candidates = [alpha for alpha in (adapter.alpha, *wanted[:1]) if alpha]
    for alpha in candidates:
        if all(math.isclose(pair.scaling, alpha / pair.rank, rel_tol=1e-9) for pair in pairs):
            return alpha, list(pairs)
    alpha = next(iter(candidates), 1.0)
    return alpha, [_scaled(pair, given / alpha) for pair, given in zip(pairs, wanted, strict=True)]


def _scaled(pair: LowRank, factor: float) -> LowRank:
    if math.isclose(factor, 1.0, rel_tol=1e-9):
        return pair
    source = as_float32(pair.b)
    scaled = Computed(source.name, source.shape, F32, source, partial(np.multiply, np.float32(factor)))
    return replace(pair, b=scaled)


# --- tensors --------------------------------------------------------------------------------------------------------------


def _halves(pair: LowRank) -> tuple[Tensor, Tensor]:
    """The tensors `lora_a` and `lora_b` of a pair. For an embedding `lora_a` is transposed: llama.cpp looks its rows up."""
    a, b = (pair.b, transpose(pair.a)) if pair.name == _EMBEDDING else (pair.a, pair.b)
    return tuple(  # type: ignore[return-value]
        Renamed(f"{pair.name}.{half}", tensor.shape, tensor.type, tensor) for half, tensor in (("lora_a", a), ("lora_b", b))
    )


def _measured(pair: LowRank) -> TensorInfo:
    """What the size label counts: the adapted weight, in the shape that llama.cpp's converter gives it."""
    shape = (pair.shape[-1], pair.rank) if pair.name == _EMBEDDING else pair.shape
    return TensorInfo(pair.name, shape, pair.type)


def _planned(tensor: Tensor, wanted: BlockType) -> PlannedTensor:
    kind, reason = wanted, f"{wanted.name} is requested for"
    if len(tensor.shape) < 2:
        kind, reason = F32, "it has one dimension"
    elif tensor.row_length % wanted.block_length:
        kind, reason = F16, f"rows of {tensor.row_length} do not divide into {wanted.name} blocks of {wanted.block_length}"
    return PlannedTensor(
        name=tensor.name,
        shape=tensor.shape,
        source_type=tensor.type,
        type=kind,
        reason=reason,
        rule="adapter",
        wanted=wanted,
        importance=False,
        importance_required=False,
    )


# --- the file -------------------------------------------------------------------------------------------------------------


def _metadata(adapter: Adapter, architecture: str, tensors: Sequence[TensorInfo], alpha: float) -> Metadata:
    card = Checkpoint(adapter.path, adapter.path, {}, {})
    metadata = general_metadata(card, architecture, tensors, adapter="lora", model_id=locate_path(adapter.path).model_id)
    metadata["adapter.lora.alpha"] = f32(alpha)
    tokens = adapter.config.get("alora_invocation_tokens")
    if tokens:
        if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 1 << 32 for token in tokens):
            raise FormatError(adapter.path / CONFIG, "alora_invocation_tokens are not token ids")
        metadata["adapter.alora.invocation_tokens"] = array(ValueType.UINT32, tokens)
    metadata["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    return metadata


def _output_path(adapter: Path, type: str, output: Path | None) -> Path:
    if output is None or output.is_dir():
        return (output or Path()) / f"{locate_path(adapter).name}-{type}.gguf"
    return Path(str(output).replace("{type}", type))
