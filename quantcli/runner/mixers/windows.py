"""The attention mask of each layer (sliding-window, chunked or full; causal or not), and which layers have RoPE."""

from __future__ import annotations

from dataclasses import dataclass

from quantcli.architectures.graph import Graph
from quantcli.runner.metadata import MOST, MetadataReader


@dataclass(frozen=True)
class Window:
    """An attention window of `size` positions; 0: full attention.

    It slides, or where `chunked` a query attends to positions since the last multiple of `size` (chunked attention).
    A query also attends to `ahead` later positions, where they are in the cache; 0: causal.
    """

    size: int
    chunked: bool
    ahead: int


def read_windows(read: MetadataReader, graph: Graph, count: int) -> list[Window]:
    """The attention window of each of `count` layers.

    Puts `windowed`, whether each layer has one, and `windows`, whether any has, into the scope of later expressions.

    Raises:
        ModelError: for a size that is not a non-negative integer, or an invalid layer pattern.
    """
    size, causal = read.count_formula("window", graph.window), read_causal(read, graph)
    # A symmetric window reaches half its size to each side of a token.
    reached = size // 2 + 1 if graph.window_kind == "symmetric" else size
    windowed = [bool(size) and chosen for chosen in read.layer_formula("window_pattern", graph.window_pattern, count)]
    read.scope["windowed"], read.scope["windows"] = windowed, any(windowed)
    beyond = {True: reached - 1, False: MOST}
    return [
        Window(reached if limited else 0, graph.window_kind == "chunked", 0 if causal else beyond[limited])
        for limited in windowed
    ]


def read_rotating(read: MetadataReader, graph: Graph, count: int) -> list[bool]:
    """Which of `count` layers have RoPE. To be read after the windows.

    Raises:
        ModelError: for an invalid layer pattern.
    """
    return [graph.rope != "none" and chosen for chosen in read.layer_formula("rope_layers", graph.rope_layers, count)]


def read_causal(read: MetadataReader, graph: Graph) -> bool:
    """Whether attention is causal."""
    return bool(read.formula("causal", graph.causal, 1.0))
