"""The kinds of token mixers, by the names that the graph flags `mixer` and `recurrent` use: those of their modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Final

from quantcli.architectures.graph import Graph
from quantcli.runner import mixers
from quantcli.runner.metadata import MetadataReader
from quantcli.runner.sizes import MixerSizes

ReadSizes = Callable[[MetadataReader, Graph, int, Sequence[int]], Sequence[MixerSizes]]
"""Reads the hyperparameters of layers of one kind: from metadata, graph, number of all layers, and the layers' indices.

Raises ModelError for metadata that are missing or contradict each other."""


def _kinds() -> Iterator[tuple[str, ReadSizes]]:
    """The modules of this folder that have a function `read_sizes`."""
    for found in iter_modules(mixers.__path__):
        if f"{mixers.__name__}.{found.name}" != __name__:
            module = import_module(f"{mixers.__name__}.{found.name}")
            if hasattr(module, "read_sizes"):
                yield found.name, module.read_sizes


MIXERS: Final[Mapping[str, ReadSizes]] = MappingProxyType(dict(_kinds()))
