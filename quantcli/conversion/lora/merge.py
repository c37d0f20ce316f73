"""Merge LoRA adapters into a checkpoint: a lazy view of it in which adapted weights are `W + scale * scaling * B A`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from quantcli.architectures.loader import Architecture
from quantcli.architectures.transforms import BF16, F16, F32
from quantcli.conversion.lora.merged_tensors import KEPT_BYTES, Merged, Product, Vector
from quantcli.core.block_types import OPAQUE_TYPES
from quantcli.core.errors import ModelError, UnsupportedError, UsageError
from quantcli.core.listing import listed
from quantcli.formats.adapters import Adapter, LowRank, open_adapter
from quantcli.formats.checkpoint.checkpoint import Checkpoint
from quantcli.formats.checkpoint.nested import with_text_changes
from quantcli.tensors.array_cache import ArrayCache
from quantcli.tensors.derived import Renamed
from quantcli.tensors.tensor import Tensor


@dataclass(frozen=True)
class AdapterRequest:
    """An adapter to merge, and the factor to merge it with."""

    path: Path
    scale: float = 1.0


def parse_adapter(text: str) -> AdapterRequest:
    """Read `DIR` or `DIR:SCALE`.

    Raises:
        UsageError: if the scale is not finite.
    """
    path, colon, number = text.rpartition(":")
    if not colon or not path:
        return AdapterRequest(Path(text))
    try:
        scale = float(number)
    except ValueError:
        return AdapterRequest(Path(text))  # the colon is part of the path
    if not math.isfinite(scale):
        raise UsageError(f"--lora {text}: the scale {number} is not finite")
    return AdapterRequest(Path(path), scale)


@contextmanager
def merged(checkpoint: Checkpoint, architecture: Architecture, requests: Sequence[AdapterRequest]) -> Iterator[Checkpoint]:
    """The checkpoint with adapters merged into it, one after another. The adapters' files are closed on leaving.

    Raises:
        FormatError, UnsupportedError, ModelError: as `open_adapter` and `merge_adapter`.
    """
    with ExitStack() as stack:
        for request in requests:
            adapter = stack.enter_context(open_adapter(request.path))
            checkpoint = merge_adapter(checkpoint, architecture, adapter, request.scale)
            checkpoint = replace(checkpoint, merged_files=(*checkpoint.merged_files, *adapter.files()))
        yield checkpoint


def merge_adapter(
    checkpoint: Checkpoint, architecture: Architecture, adapter: Adapter, scale: float = 1.0
) -> Checkpoint:
    """A checkpoint with an adapter merged into it.

    Fully trained weights of the adapter replace those of the checkpoint. Where input and output embedding are tied, a
    low-rank update of one is added to both, as in peft. If one of the two was fully trained they become untied, and the
    other keeps its weights.

    Raises:
        ModelError: if tensors of the adapter match none of the checkpoint, or have other shapes.
        UnsupportedError: if a weight is quantized, or the input embedding was trained apart from a tied output that the
            architecture has no tensor for.
    """
    tensors, tied = dict(checkpoint.tensors), _tied(checkpoint, architecture)
    if tied and _trains_embedding(adapter, tied):
        tensors |= _untied(tensors, tied, checkpoint, architecture)
        tied = None
    names = _Names(tensors, tied)
    problems: list[str] = []
    _check_frozen(adapter, tensors, names, problems)
    for given, whole in adapter.whole.items():
        if adapter.config.get("ensure_weight_tying") and names.untied(given):
            continue  # a second copy of the embedding
        name = names.find(given) or names.untied(given)
        if name is None:
            problems.append(f"{given} is not in the model")
        elif (old := tensors.get(name)) is not None and old.shape != whole.shape:
            problems.append(f"{given} is {list(whole.shape)} where the model has {list(old.shape)}")
        else:
            tensors[name] = replace(whole, name=name)
    merger = _Merger(tensors, scale, problems)
    for pair in sorted(adapter.pairs.values(), key=lambda pair: not pair.embedding):  # embeddings first, as in the model
        targets = names.targets(pair.name)
        if not targets:
            problems.append(f"{pair.name} is not in the model")
        for name in targets:
            merger.merge(name, pair)
    if problems:
        raise ModelError(
            f"{adapter.path}: the adapter does not fit {checkpoint.path}: {listed(problems, separator='; ')}",
            hint=_made_for(adapter),
        )
    untied = {"tie_word_embeddings": False} if len(tensors) > len(checkpoint.tensors) else {}
    config = with_text_changes(checkpoint.config, untied)
    return replace(checkpoint, tensors=tensors, config=config)


def _made_for(adapter: Adapter) -> str | None:
    base = adapter.config.get("base_model_name_or_path")
    return f"The adapter was made for {base[:200]}." if isinstance(base, str) and base.isprintable() and base else None


class _Merger:
    """Replaces tensors in `tensors` by merged ones. Adapter tensors that do not fit are added to `problems`."""

    def __init__(self, tensors: dict[str, Tensor], scale: float, problems: list[str]) -> None:
        self._tensors = tensors
        self._scale = scale
        self._problems = problems
        self._cache = ArrayCache(KEPT_BYTES)

    def merge(self, name: str, pair: LowRank) -> None:
        """Add a pair to the weight `name`, and the pair's bias to the bias of that layer."""
        weight, scaling = self._tensors[name], pair.scaling * self._scale
        transposed = self._orientation(weight, pair)
        if transposed is None:
            self._problems.append(f"{pair.name} is {list(pair.shape)} where the model has {list(weight.shape)}")
            return
        if pair.magnitude is not None:
            _check_magnitude(pair, pair.magnitude, transposed=transposed)
        self._add(weight, Product(pair, transposed, scaling, self._cache))
        if pair.bias is not None:
            bias = self._tensors.get(name.removesuffix("weight") + "bias")
            if bias is None or bias.shape != pair.bias.shape:
                self._problems.append(f"{pair.module}: it has a lora_B.bias, but the model's layer has no bias")
            else:
                self._add(bias, Vector(pair.bias, scaling))

    def _orientation(self, weight: Tensor, pair: LowRank) -> bool | None:
        """Whether the product must be transposed; None if it does not fit either way.

        The shape decides before the configuration, whose `fan_in_fan_out` is one value for all layers.
        """
        if weight.shape == pair.shape:
            return pair.transposed
        return not pair.transposed if weight.shape == pair.shape[::-1] else None

    def _add(self, tensor: Tensor, delta: Product | Vector) -> None:
        if tensor.type.is_quantized or tensor.type.name in OPAQUE_TYPES:
            raise UnsupportedError(
                f"tensor {tensor.name!r} is stored as {tensor.type.name}, into which adapters cannot be merged",
                hint="Use the model in bfloat16, float16 or float32.",
            )
        kept = tensor.type if tensor.type in (BF16, F16) else F32
        self._tensors[tensor.name] = Merged(tensor.name, tensor.shape, kept, tensor, delta)


def _check_magnitude(pair: LowRank, magnitude: Tensor, *, transposed: bool) -> None:
    if transposed or magnitude.size != pair.shape[0]:
        raise UnsupportedError(
            f"DoRA on {pair.module}, an embedding or a layer that is stored as (in, out), is not supported",
            hint="Let peft merge it (`merge_and_unload`) and convert the merged model.",
        )


def _check_frozen(adapter: Adapter, tensors: Mapping[str, Tensor], names: _Names, problems: list[str]) -> None:
    """Compare the shapes of base weights that the adapter holds copies of: a resized vocabulary is another model."""
    for given, copy in adapter.frozen.items():
        name = names.find(given) or names.tied(given)
        if name is not None and tensors[name].shape != copy.shape:
            problems.append(
                f"{given} was {list(copy.shape)} when it was trained, the model has {list(tensors[name].shape)}"
            )


# --- names ----------------------------------------------------------------------------------------------------------------


def _tied(checkpoint: Checkpoint, architecture: Architecture) -> tuple[str, str | None] | None:
    """The names of the tied input and output embedding; None if they are not tied.

    The name of the output is None where the architecture has no tensor for it.
    """
    sources = {row.name: row.sources[0] for row in architecture.declaration.tensors if len(row.sources) == 1}
    embedding, output = sources.get("token_embd.weight"), sources.get("output.weight")
    said = architecture.hyperparameters(checkpoint.config).get("tie_word_embeddings")
    if embedding is None or (output is None and not said):
        return None
    is_there = output is not None and any(_same(name, output) for name in checkpoint.tensors)
    return None if is_there and not said else (embedding, output)


def _trains_embedding(adapter: Adapter, tied: tuple[str, str | None]) -> bool:
    """Whether peft unties the output by fully training a copy of the embedding (`modules_to_save`).

    With `ensure_weight_tying` peft saves both. An embedding that was saved because tokens were added is not in that list.
    """
    saved = adapter.config.get("modules_to_save") or []
    module = tied[0].removesuffix(".weight")
    return (
        isinstance(saved, list)
        and not adapter.config.get("ensure_weight_tying")
        and any(isinstance(name, str) and _same(name, module) for name in saved)
        and any(_same(name, tied[0]) for name in adapter.whole)
    )


def _untied(
    tensors: Mapping[str, Tensor], tied: tuple[str, str | None], checkpoint: Checkpoint, architecture: Architecture
) -> dict[str, Tensor]:
    """The output embedding as a tensor of its own: the input embedding as it was before merging."""
    embedding, output = tied
    if output is None:
        what = f"the output of {architecture.title} is tied to its embedding, but the adapter trained only the embedding"
        raise UnsupportedError(f"{checkpoint.path}: {what}", hint="Train it with `ensure_weight_tying=True`.")
    found = _Names(tensors, None).find(embedding)
    if found is None or any(_same(name, output) for name in tensors):
        return {}
    return {output: Renamed(output, tensors[found].shape, tensors[found].type, tensors[found])}


class _Names:
    """Finds the checkpoint's tensor for a name in an adapter. Either name may have a prefix that the other lacks."""

    def __init__(self, tensors: Iterable[str], tied: tuple[str, str | None] | None) -> None:
        self._by_end: dict[str, list[str]] = {}
        for name in tensors:
            self._by_end.setdefault(_end(name), []).append(name)
        self._pair = () if tied is None or tied[1] is None else (tied[0], tied[1])

    def find(self, given: str) -> str | None:
        """The tensor of that name, or the only one of which one name is a suffix of the other."""
        near = [name for name in self._by_end.get(_end(given), ()) if _same(name, given)]
        return given if given in near else near[0] if len(near) == 1 else None

    def tied(self, given: str) -> str | None:
        """The input embedding, if `given` is the output tied to it."""
        return self.find(self._pair[0]) if self._pair and _same(given, self._pair[1]) else None

    def untied(self, given: str) -> str | None:
        """The name of the output embedding, if `given` is the tied output."""
        return self._pair[1] if self._pair and _same(given, self._pair[1]) else None

    def targets(self, given: str) -> list[str]:
        """The tensors that an update of `given` is added to: for tied embeddings all that exist."""
        if self._pair and any(_same(given, name) for name in self._pair):
            return [found for name in self._pair if (found := self.find(name)) is not None]
        found = self.find(given)
        return [] if found is None else [found]


def _same(first: str, second: str) -> bool:
    return f".{first}".endswith(f".{second}") or f".{second}".endswith(f".{first}")


def _end(name: str) -> str:
    """The last two components of a name, which do not depend on a prefix."""
    return ".".join(name.split(".")[-2:])
