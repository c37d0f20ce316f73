"""What a conversion changes in a model besides the types of its tensors: metadata overrides and pruned layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from quantcli.conversion.metadata.output import quantized_metadata
from quantcli.conversion.prune import prune_importance, prune_tensors, pruned_block_count, pruned_names
from quantcli.conversion.recipes import Recipe
from quantcli.conversion.source import Source
from quantcli.core.errors import UnsupportedError
from quantcli.formats.gguf.spec import Field, Metadata, ValueType, replace_keys
from quantcli.formats.imatrix import Imatrix
from quantcli.tensors.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The changes that a user asks for. The default changes nothing."""

    metadata: Mapping[str, Field] = field(default_factory=dict)
    """Entries to set or to replace. The plan is made with them too."""
    prune_layers: Collection[int] = ()
    """Layers to remove. Later layers are renumbered."""


NO_CHANGES: Final = Changes()


@dataclass(frozen=True)
class ChangedModel:
    """A model with its changes applied, which is planned and written. `tensors` and `imatrix` have the output's names."""

    source: Source
    changes: Changes
    tensors: dict[str, Tensor]
    imatrix: Imatrix | None
    noted_imatrix: Imatrix | None
    """The importance matrix before pruning, which the output's metadata describe."""
    block_count: Metadata
    """The number of layers, set after all other metadata. Empty if none was pruned."""

    @property
    def metadata(self) -> Metadata:
        """The metadata that the plan is made with. `block_count` is that of the whole model, before pruning."""
        return {**self.source.metadata, **self.changes.metadata}

    def output_metadata(self, recipe: Recipe) -> Metadata:
        """The metadata of the file that `recipe` makes of the model, in llama-quantize's order."""
        source, overrides = self.source, self.changes.metadata
        tensors = list(source.tensors.values())
        metadata = quantized_metadata(source.metadata, recipe, self.noted_imatrix, overrides=overrides, tensors=tensors)
        replace_keys(metadata, self.block_count)
        return metadata


def apply_changes(source: Source, changes: Changes = NO_CHANGES, imatrix: Imatrix | None = None) -> ChangedModel:
    """Apply `changes` to a model and to its importance matrix.

    Raises:
        UsageError: if a layer to prune does not exist, or no layer would be left.
        UnsupportedError: if layers are pruned from a model whose metadata have an array with a value for each layer.
    """
    if not changes.prune_layers:
        return ChangedModel(source, changes, source.tensors, imatrix, imatrix, {})
    _refuse_lists_by_layer(source)
    names = pruned_names(source.tensors, changes.prune_layers)
    return ChangedModel(
        source,
        changes,
        tensors=prune_tensors(source.tensors, names),
        imatrix=prune_importance(imatrix, names) if imatrix else None,
        noted_imatrix=imatrix,
        block_count=pruned_block_count(source.architecture, names),
    )


def _refuse_lists_by_layer(source: Source) -> None:
    """Refuse arrays with a value for each layer. llama-quantize does not shorten them, and llama.cpp refuses its output."""
    layers = source.metadata.get(f"{source.architecture}.block_count")
    for key, entry in source.metadata.items():
        listed = entry.type == ValueType.ARRAY and key.startswith(f"{source.architecture}.")
        if listed and layers and len(entry.value) == layers.value:
            raise UnsupportedError(f"{source.path}: {key} has a value for each layer, so layers cannot be pruned")
