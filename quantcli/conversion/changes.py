"""What a conversion changes in a model besides the types of its tensors: metadata that is set, layers that are left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from quantcli.conversion.output_metadata import quantized_metadata
from quantcli.conversion.prune import prune_importance, prune_tensors, pruned_block_count, pruned_names
from quantcli.conversion.recipes import Recipe
from quantcli.conversion.source import Source
from quantcli.formats.errors import UnsupportedError
from quantcli.formats.gguf_spec import Field, Metadata, ValueType, replace_keys
from quantcli.formats.imatrix import Imatrix
from quantcli.formats.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a user may want changed. The default changes nothing."""

    metadata: Mapping[str, Field] = field(default_factory=dict)
    """Entries to set, be they in the model or not. The plan is made with them too."""
    prune_layers: Collection[int] = ()
    """Layers to leave out; those behind them move up."""


NO_CHANGES: Final = Changes()


@dataclass(frozen=True)
class ChangedModel:
    """A model with its changes: what is planned and written. `tensors` and `imatrix` go by the names in the output."""

    source: Source
    changes: Changes
    tensors: dict[str, Tensor]
    imatrix: Imatrix | None
    noted_imatrix: Imatrix | None
    """The importance matrix before any layer was left out: what the output's metadata tell about it."""
    block_count: Metadata
    """The number of layers, set after all other metadata; empty if none was left out."""

    @property
    def metadata(self) -> Metadata:
        """What the plan is made with: it counts the layers that the whole model had."""
        return {**self.source.metadata, **self.changes.metadata}

    def output_metadata(self, recipe: Recipe) -> Metadata:
        """The metadata of the file that `recipe` makes of the model, in llama-quantize's order."""
        source, overrides = self.source, self.changes.metadata
        tensors = list(source.tensors.values())
        metadata = quantized_metadata(source.metadata, recipe, self.noted_imatrix, overrides=overrides, tensors=tensors)
        replace_keys(metadata, self.block_count)
        return metadata


def change(source: Source, changes: Changes = NO_CHANGES, imatrix: Imatrix | None = None) -> ChangedModel:
    """Apply `changes` to a model, and to the importance values that belong to it.

    Raises:
        UsageError: if a layer to leave out does not exist, or none would be left.
        UnsupportedError: if layers are left out of a model whose metadata have a list with a value for each layer.
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
    """llama-quantize leaves such lists as they are, and llama.cpp refuses the file: they are longer than its layers."""
    layers = source.metadata.get(f"{source.architecture}.block_count")
    for key, entry in source.metadata.items():
        listed = entry.type == ValueType.ARRAY and key.startswith(f"{source.architecture}.")
        if listed and layers and len(entry.value) == layers.value:
            raise UnsupportedError(f"{source.path}: {key} has a value for each layer, so that no layer can be left out")
