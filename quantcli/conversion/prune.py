"""Prune layers: remove the tensors of some blocks and renumber the later blocks, as llama-quantize's `--prune-layers`.

The rest is planned with the metadata of the whole model: rules for a fraction of the layers count those of the whole model.
Source: `remap_layer` in `src/llama-quant.cpp` of llama.cpp.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final, TypeVar

from quantcli.core.errors import UsageError, clipped
from quantcli.formats.gguf.spec import Field, u32
from quantcli.formats.imatrix import Imatrix
from quantcli.tensors.tensor import TensorInfo

AnyTensor = TypeVar("AnyTensor", bound=TensorInfo)

_LAYER: Final = re.compile("[0-9]{1,9}")
_BLOCK: Final = re.compile(r"blk\.(\d+)\.")


def parse_layers(text: str) -> frozenset[int]:
    """Parse layer numbers separated by commas.

    Raises:
        UsageError: if one is not a number.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(_LAYER.fullmatch(word) for word in words):
        raise UsageError(f"{clipped(repr(text))} is not a list of layers", hint="for example: 3,7,11")
    return frozenset(map(int, words))


def pruned_names(names: Iterable[str], layers: Collection[int]) -> dict[str, str]:
    """Old name -> new name of every tensor that is kept without `layers`.

    Raises:
        UsageError: if a layer does not exist, or no layer would be left.
    """
    blocks = {name: _block(name) for name in names}
    existing = {block for block in blocks.values() if block is not None}
    missing = sorted(set(layers) - existing)
    if missing:
        raise UsageError(f"the model has no layer {missing[0]}, only {len(existing)} layers from 0")
    kept = sorted(existing - set(layers))
    if existing and not kept:
        raise UsageError("no layer would be left")
    numbers = {block: number for number, block in enumerate(kept)}
    return {
        name: name if block is None else _BLOCK.sub(f"blk.{numbers[block]}.", name, count=1)
        for name, block in blocks.items()
        if block is None or block in numbers
    }


def prune_tensors(tensors: Mapping[str, AnyTensor], names: Mapping[str, str]) -> dict[str, AnyTensor]:
    """The tensors that are kept, under their new names. `names` is that of `pruned_names`."""
    return {new: dataclasses.replace(tensors[old], name=new) for old, new in names.items()}


def prune_importance(imatrix: Imatrix, names: Mapping[str, str]) -> Imatrix:
    """The importance values of the tensors that are kept, under their new names."""
    entries = {new: imatrix.entries[old] for old, new in names.items() if old in imatrix.entries}
    return dataclasses.replace(imatrix, entries=entries)


def pruned_block_count(architecture: str, names: Mapping[str, str]) -> dict[str, Field]:
    """The metadata entry with the number of layers that are kept. It is set after all others."""
    left = {_block(new) for new in names.values()} - {None}
    return {f"{architecture}.block_count": u32(len(left))}


def _block(name: str) -> int | None:
    found = _BLOCK.search(name)
    return int(found[1]) if found else None
