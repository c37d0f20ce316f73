"""The hyperparameters of a model, and the protocols for those of each kind of token mixer and feed-forward network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from quantcli.architectures.graph import Graph
from quantcli.runner.cache import LayerMemory
from quantcli.runner.rotary import Rope
from quantcli.runner.step import Step, Temperature
from quantcli.runner.weights import Floats, Weights

Sublayer = Callable[[Floats, Step], Floats]
"""A token mixer or a feed-forward network: hidden states `(tokens, width)` to an output of the same shape."""


class MixerSizes(Protocol):
    """The hyperparameters of one layer's token mixer, whatever its kind."""

    @property
    def memory(self) -> LayerMemory:
        """What the layer keeps in the cache."""

    @property
    def rotatable(self) -> int:
        """Dimensions of a query or key that RoPE may rotate; 0 for a kind without queries and keys."""

    def load(self, weights: Weights, graph: Graph, sizes: Hyperparameters, index: int) -> Sublayer:
        """The mixer of layer `index`.

        Raises:
            ModelError: for a tensor that is missing or has the wrong shape.
            UnsupportedError: for a tensor type that is not supported.
        """


class FeedForwardSizes(Protocol):
    """The hyperparameters of a kind of feed-forward network, the same in all layers that have it."""

    def load(self, weights: Weights, graph: Graph, width: int, prefix: str) -> Sublayer:
        """The network whose tensors begin with `prefix`.

        Raises:
            ModelError: for a tensor that is missing or has the wrong shape.
            UnsupportedError: for a tensor type that is not supported.
        """


@dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters of a model.

    `layers` is the number of layers that are run. After them a file may have `mtp_layers` for multi-token prediction (MTP).
    `context` is the trained context length, `width` the embedding length. `classifier_pooling` is the pooling
    before a classifier, a name in `pooling.POOLINGS`. `mixers` has an entry per layer, `feed_forward` one per kind.
    """

    architecture: str
    layers: int
    mtp_layers: int
    context: int
    width: int
    norm_epsilon: float
    causal: bool
    parallel: bool
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_softcap: float
    classifier_pooling: str
    rope: Rope
    temperature: Temperature | None
    mixers: tuple[MixerSizes, ...]
    feed_forward: Mapping[str, FeedForwardSizes]

    @property
    def memory(self) -> tuple[LayerMemory, ...]:
        """What each layer keeps in the cache."""
        return tuple(mixer.memory for mixer in self.mixers)

    @property
    def recurrent(self) -> bool:
        """Whether some layer has a recurrent state, so that the cache cannot be truncated or shifted."""
        return any(memory.states for memory in self.memory)
