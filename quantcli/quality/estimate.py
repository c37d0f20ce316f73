"""The size of each file type of a model, and the memory to run it, from headers alone: no weights are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from quantcli.conversion.locate import locate
from quantcli.conversion.model_changes import ChangedModel, apply_changes
from quantcli.conversion.plan import PlanOptions, make_plan
from quantcli.conversion.recipes import RECIPES, Recipe, find_recipe
from quantcli.conversion.source import is_gguf, open_source
from quantcli.core.errors import QuantcliError
from quantcli.formats.gguf.spec import DEFAULT_ALIGNMENT, align, layer_number
from quantcli.formats.gguf.vocabulary import TOKENS
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.quality.bases import BASES
from quantcli.quality.source_file import SourceFile
from quantcli.runner.cache import BATCH, check_cache_type, full_bytes
from quantcli.runner.hyperparameters import read_hyperparameters
from quantcli.runner.sizes import Hyperparameters
from quantcli.tensors.tensor import TensorInfo

PROGRAM: Final = 150 << 20
"""Bytes of Python, NumPy, numba and the compiled kernels, as `tests/bench/memory_estimate.py` measures them."""

_TOKEN: Final = 400
"""Bytes of the tokenizer's tables for each token, measured in the same way."""

_STATES: Final = 8
"""Hidden states of a batch that are held at once: about so many vectors of the model's width for each token."""

_WIDE: Final = 3
"""The widest activations of a batch that are held at once: gate, up and their product."""

CONTEXTS: Final = (4096, 32768)
"""The contexts that are shown by default, besides the trained one where it is smaller."""

_EMBEDDING: Final = "token_embd.weight"


@dataclass(frozen=True)
class Row:
    """A file type: its size, and the memory that each context needs.

    bits_per_weight   of the tensors
    memory            bytes for each of the estimate's contexts; empty where the model cannot be run
    longest           the longest context that fits into the memory asked about, at most the trained one; 0 where none
                      does, None where it was not asked
    """

    type: str
    file_bytes: int
    bits_per_weight: float
    memory: tuple[int, ...]
    longest: int | None


@dataclass(frozen=True)
class Estimate:
    """What a model needs.

    contexts   those of the rows' memory
    trained    the context that the model is trained for; 0 where it cannot be run
    cache      bytes of the KV cache for each context
    unrun      why memory is not estimated, or None
    """

    name: str
    architecture: str
    parameters: int
    contexts: tuple[int, ...]
    trained: int
    cache: tuple[int, ...]
    rows: tuple[Row, ...]
    unrun: str | None

    def recommended(self) -> Row | None:
        """Of the usual types that fit with the shortest of the contexts, the largest; of others where no usual one fits."""
        fitting = [row for row in self.rows if row.longest is not None and row.longest >= min(self.contexts)]
        usual = [row for row in fitting if row.type in (*BASES, "F16", "BF16")] or fitting
        return max(usual, key=lambda row: row.bits_per_weight, default=None)

    def as_json(self) -> dict[str, Any]:
        """The document of `--json`."""
        best = self.recommended()
        return {
            "model": self.name,
            "architecture": self.architecture,
            "parameters": self.parameters,
            "trained_context": self.trained,
            "contexts": list(self.contexts),
            "cache_bytes": list(self.cache),
            "recommended": None if best is None else best.type,
            "types": [
                {
                    "type": row.type,
                    "file_bytes": row.file_bytes,
                    "bits_per_weight": row.bits_per_weight,
                    "memory_bytes": list(row.memory),
                    "longest_context": row.longest,
                }
                for row in self.rows
            ],
        }


def estimate(
    model: str | PathLike[str],
    types: Sequence[str] = (),
    *,
    contexts: Sequence[int] = (),
    cache_type: str = "f16",
    memory: int | None = None,
) -> Estimate:
    """Estimate a checkpoint, a GGUF file, or a model of the hub, of which the headers are read by ranges.

    Args:
        model: a path or `ORG/NAME`.
        types: recipes; by default all. A GGUF file is also estimated as it is, and by default only so if it is quantized.
        contexts: context lengths; by default `CONTEXTS`.
        cache_type: the type of the KV cache.
        memory: bytes of memory, to find the longest context that fits.

    Raises:
        UsageError: for an unknown type.
        FormatError, ModelError, UnsupportedError, HubError: if the model cannot be read.
    """
    check_cache_type(cache_type)
    recipes = [find_recipe(name) for name in types]
    located = locate(model, dry_run=True)
    with open_source(located.place, model_id=located.model_id) as source:
        changed = apply_changes(source)
        infos = list(changed.tensors.values())
        needs = _needs(SourceFile.of(source), infos, cache_type)
        trained = 0 if isinstance(needs, str) else needs.sizes.context
        shown = tuple(contexts) or tuple(sorted({min(context, trained or context) for context in CONTEXTS}))
        files = []
        if isinstance(located.place, Path) and located.place.is_file() and is_gguf(located.place):
            files.append(_File("as it is", sum(path.stat().st_size for path in source.paths), infos))
        if recipes or not files or not any(info.type.is_quantized for info in infos):
            wanted = recipes or [recipe for recipe in RECIPES.values() if recipe.base is not None]
            files += _planned(changed, infos, wanted)
        return Estimate(
            name=located.name,
            architecture=source.architecture,
            parameters=sum(info.size for info in infos),
            contexts=shown,
            trained=trained,
            cache=() if isinstance(needs, str) else tuple(full_bytes(needs.sizes, n, cache_type) for n in shown),
            rows=tuple(_row(file, needs, shown, memory) for file in files),
            unrun=needs if isinstance(needs, str) else None,
        )


@dataclass(frozen=True)
class _File:
    """A file that there is or would be."""

    type: str
    file_bytes: int
    tensors: Sequence[TensorInfo]


@dataclass(frozen=True)
class _Needs:
    """What running a model takes besides its weights."""

    sizes: Hyperparameters
    cache_type: str
    beside: int
    unkept: frozenset[str]

    def memory(self, tensors: Sequence[TensorInfo], context: int) -> int:
        """Bytes of memory to run these tensors with a full context."""
        weights = sum(info.nbytes for info in tensors if info.name not in self.unkept)
        return weights + self.beside + full_bytes(self.sizes, context, self.cache_type)

    def longest(self, tensors: Sequence[TensorInfo], memory: int) -> int:
        """The longest context that fits into memory, at most the trained one; 0 where none does."""
        low, high = 0, self.sizes.context
        while low < high:
            middle = (low + high + 1) // 2
            if self.memory(tensors, middle) <= memory:
                low = middle
            else:
                high = middle - 1
        return low


def _needs(file: SourceFile, infos: Sequence[TensorInfo], cache_type: str) -> _Needs | str:
    """What running the model takes; or why it cannot be run."""
    try:
        sizes, _ = read_hyperparameters(file)
    except QuantcliError as error:
        return error.message
    names = {info.name for info in infos}
    # Rows of an embedding are read one by one; one that is the output matrix too is read whole for each token.
    unkept = {_EMBEDDING} if "output.weight" in names else set()
    unkept |= {name for name in names if (layer_number(name) or 0) >= sizes.layers}
    vocabulary = next((info.rows for info in infos if info.name == _EMBEDDING), 0)
    layers = [info for info in infos if layer_number(info.name) is not None and len(info.shape) > 1]
    widest = max((info.shape[-2] for info in layers), default=0)
    batch = 4 * BATCH * (_STATES * sizes.width + _WIDE * widest)
    tokens = file.metadata.get(TOKENS)
    tables = _TOKEN * (tokens.count if tokens is not None and tokens.element is not None else 0)
    return _Needs(sizes, cache_type, PROGRAM + batch + 4 * vocabulary + tables, frozenset(unkept))


def _planned(model: ChangedModel, infos: Sequence[TensorInfo], recipes: Sequence[Recipe]) -> list[_File]:
    """The files of these recipes. All have a header of one length: only the first is laid out."""
    files: list[_File] = []
    header = None
    for recipe in recipes:
        metadata = model.output_metadata(recipe)
        entry = metadata.get("general.alignment")
        alignment = DEFAULT_ALIGNMENT if entry is None else int(entry.value)
        try:
            plan = make_plan(infos, model.metadata, recipe, PlanOptions(calibrated=True))
        except QuantcliError:  # of rows that no type of this recipe takes
            continue
        tensors = [planned.info for planned in plan]
        data = sum(align(info.nbytes, alignment) for info in tensors)
        if header is None:
            header = GGUFWriter(Path(os.devnull), metadata, tensors).file_bytes - data
        files.append(_File(recipe.name, header + data, tensors))
    return files


def _row(file: _File, needs: _Needs | str, contexts: Sequence[int], memory: int | None) -> Row:
    bits = 8 * sum(info.nbytes for info in file.tensors) / max(1, sum(info.size for info in file.tensors))
    if isinstance(needs, str):
        return Row(file.type, file.file_bytes, bits, (), None)
    return Row(
        file.type,
        file.file_bytes,
        bits,
        tuple(needs.memory(file.tensors, context) for context in contexts),
        None if memory is None else needs.longest(file.tensors, memory),
    )
