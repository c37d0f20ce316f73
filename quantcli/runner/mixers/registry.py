"""The kinds of token mixers, by the names that the graph flags `mixer` and `recurrent` use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from quantcli.architectures.graph import Graph
from quantcli.runner.metadata import MetadataReader
from quantcli.runner.mixers import attention, mamba, mamba2, mla, short_convolution
from quantcli.runner.sizes import MixerSizes

ReadSizes = Callable[[MetadataReader, Graph, int, Sequence[int]], Sequence[MixerSizes]]
"""Reads the hyperparameters of layers of one kind: from metadata, graph, number of all layers, and the layers' indices.

Raises ModelError for metadata that are missing or contradict each other."""

MIXERS: Final[Mapping[str, ReadSizes]] = MappingProxyType(
    {
        "attention": attention.read_sizes,
        "mla": mla.read_sizes,
        "short_convolution": short_convolution.read_sizes,
        "mamba": mamba.read_sizes,
        "mamba2": mamba2.read_sizes,
    }
)
