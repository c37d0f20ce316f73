"""Which positions the queries of a layer see, and which layers rotate queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

from quantcli.architectures.graph import Graph
from quantcli.runner.metadata import MOST, MetadataReader


@dataclass(frozen=True)
class Window:
    """`size` positions are seen: the last ones or, where `chunked`, those since the last multiple; 0: all.

    `ahead` positions after a query's own are seen too, where they have been stored.
    """

    size: int
    chunked: bool
    ahead: int


def read_windows(read: MetadataReader, graph: Graph, count: int) -> list[Window]:
    """The window of each of `count` layers. Expressions may use `windowed`, and whether any is, `windows`.

    Raises:
        ModelError: for a size that is no count, or a pattern that is not one of layers.
    """
    size, causal = read.count_formula("window", graph.window), read_causal(read, graph)
    # Half of a symmetric window is on each side of a token.
    reached = size // 2 + 1 if graph.window_kind == "symmetric" else size
    windowed = [bool(size) and chosen for chosen in read.layer_formula("window_pattern", graph.window_pattern, count)]
    read.scope["windowed"], read.scope["windows"] = windowed, any(windowed)
    beyond = {True: reached - 1, False: MOST}
    return [
        Window(reached if limited else 0, graph.window_kind == "chunked", 0 if causal else beyond[limited])
        for limited in windowed
    ]


def read_rotating(read: MetadataReader, graph: Graph, count: int) -> list[bool]:
    """Which of `count` layers rotate queries and keys (RoPE); read after the windows.

    Raises:
        ModelError: for a pattern that is not one of layers.
    """
    return [graph.rope != "none" and chosen for chosen in read.layer_formula("rope_layers", graph.rope_layers, count)]


def read_causal(read: MetadataReader, graph: Graph) -> bool:
    """Whether a token sees those before it alone."""
    return bool(read.formula("causal", graph.causal, 1.0))
