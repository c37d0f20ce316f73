"""The kinds of feed-forward networks. A layer is of the first kind whose marker tensor it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from quantcli.architectures.graph import Graph
from quantcli.runner.feed_forward import dense, experts
from quantcli.runner.metadata import MetadataReader
from quantcli.runner.sizes import FeedForwardSizes


@dataclass(frozen=True)
class FeedForwardKind:
    """`marker` is a tensor that only layers of this kind have; None: the kind of all remaining layers.

    `read_sizes` raises ModelError for metadata that are missing or contradict each other.
    """

    marker: str | None
    read_sizes: Callable[[MetadataReader, Graph], FeedForwardSizes]


FEED_FORWARD: Final[Mapping[str, FeedForwardKind]] = MappingProxyType(
    {
        "experts": FeedForwardKind("ffn_gate_inp.weight", experts.read_sizes),
        "dense": FeedForwardKind(None, dense.read_sizes),
    }
)
