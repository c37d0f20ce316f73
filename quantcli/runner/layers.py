"""A transformer block: a token mixer and a feed-forward network, with their norms and residual connections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.kernels.elementwise import add
from quantcli.runner.feed_forward.registry import FEED_FORWARD
from quantcli.runner.sizes import Hyperparameters, Sublayer
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Norm, Norms, Weights


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """One block. A norm, or the MLP, is None where the architecture has none.

    `mixer_norm` and `mlp_norm` are pre-norms. `after_mixer_norm` and `after_mlp_norm` apply to a sublayer's output before
    the residual addition. `mixer_sum_norm` and `mlp_sum_norm` apply after it (post-norm).
    """

    mixer_norm: Norm | None
    mixer: Sublayer
    after_mixer_norm: Norm | None
    mlp_norm: Norm | None
    mlp: Sublayer | None
    after_mlp_norm: Norm | None
    mixer_sum_norm: Norm | None
    mlp_sum_norm: Norm | None
    parallel: bool
    shared_norm: bool
    scale: np.float32

    def __call__(self, x: Floats, step: Step) -> None:
        """Update the residual stream `x`, float32 `(tokens, width)`, in place.

        A `parallel` block adds mixer and MLP outputs together (parallel residual). With `shared_norm` both read one norm.
        """
        normed = x if self.mixer_norm is None else self.mixer_norm(x)
        mixed = self.mixer(normed, step)
        if self.after_mixer_norm is not None:
            mixed = self.after_mixer_norm(mixed)
        if self.scale != 1:
            mixed *= self.scale
        if not self.parallel:
            add(x, mixed)
        if self.mixer_sum_norm is not None:
            x[...] = self.mixer_sum_norm(x)
        if self.mlp is None:
            return
        if not self.shared_norm:
            normed = x if self.mlp_norm is None else self.mlp_norm(x)
        given = self.mlp(normed, step)
        if self.parallel:
            add(x, mixed)
        if self.after_mlp_norm is not None:
            given = self.after_mlp_norm(given)
        if self.scale != 1:
            given *= self.scale
        add(x, given)
        if self.mlp_sum_norm is not None:
            x[...] = self.mlp_sum_norm(x)


def read_layer(weights: Weights, norms: Norms, graph: Graph, sizes: Hyperparameters, index: int) -> Layer:
    """Layer `index` of a file.

    Raises:
        ModelError: for a tensor that is missing or has the wrong shape.
        UnsupportedError: for a tensor type that is not supported.
    """
    prefix, width = f"blk.{index}.", sizes.width
    shared_norm = bool(graph.attention_norm and graph.mlp_norm) and (
        norms.choose(graph.attention_norm, prefix) == norms.choose(graph.mlp_norm, prefix)
    )
    return Layer(
        mixer_norm=norms.read(graph.attention_norm, width, prefix, optional=graph.attention_norm_optional),
        mixer=sizes.mixers[index].load(weights, graph, sizes, index),
        after_mixer_norm=norms.read(graph.after_attention_norm, width, prefix),
        mlp_norm=None if shared_norm else norms.read(graph.mlp_norm, width, prefix),
        mlp=_load_feed_forward(weights, graph, sizes, prefix),
        after_mlp_norm=norms.read(graph.after_mlp_norm, width, prefix),
        mixer_sum_norm=norms.read(graph.attention_sum_norm, width, prefix),
        mlp_sum_norm=norms.read(graph.mlp_sum_norm, width, prefix),
        parallel=sizes.parallel or shared_norm,
        shared_norm=shared_norm,
        scale=np.float32(sizes.residual_scale),
    )


def _load_feed_forward(weights: Weights, graph: Graph, sizes: Hyperparameters, prefix: str) -> Sublayer | None:
    """The feed-forward network of a layer: of the first kind in `FEED_FORWARD` whose marker tensor the layer has."""
    if graph.mlp == "none":
        return None
    markers = {kind: entry.marker for kind, entry in FEED_FORWARD.items()}
    kind = next(kind for kind, marker in markers.items() if marker is None or weights.has(f"{prefix}{marker}"))
    return sizes.feed_forward[kind].load(weights, graph, sizes.width, prefix)
