"""Classifiers: the scores of a reranker or a sequence classifier, from the hidden states of a text.

The scores are those that llama.cpp computes with the pooling type `rank`, for every architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.kernels.activation_functions import activation
from quantcli.runner.pooling import POOLINGS
from quantcli.runner.sizes import Hyperparameters
from quantcli.runner.weights import Floats, Matrix, Norm, Norms, Weights


def _tanh(x: Floats) -> None:
    np.tanh(x, out=x)


_ACTIVATIONS: Final[Mapping[str, Callable[[Floats], None]]] = MappingProxyType(
    {"tanh": _tanh, "gelu": lambda x: activation("gelu").apply(x)}
)
"""In place, by the value of the graph flag `classifier`."""


@dataclass(frozen=True, eq=False, slots=True)
class Classifier:
    """The head of a classifier: pooling, a dense layer with its activation and norm, and the output layer.

    Files lack some of them. The pooling is a name in `POOLINGS`.
    """

    pooling: str
    dense: Matrix | None
    activation: Callable[[Floats], None]
    norm: Norm | None
    output: Matrix | None

    def __call__(self, hidden: Floats) -> Floats:
        """The scores of a text, float32 `(labels,)`, from its hidden states after the output norm, `(tokens, width)`."""
        x = np.ascontiguousarray(POOLINGS[self.pooling](hidden))
        if self.dense is not None:
            x = self.dense(x)
            self.activation(x)
            x = x if self.norm is None else self.norm(x)
        scores: Floats = (x if self.output is None else self.output(x))[0]
        return scores

    @property
    def labels(self) -> int:
        """The number of scores: one for a reranker."""
        last = self.output or self.dense
        return 0 if last is None else last.weights.shape[0]


def read_classifier(weights: Weights, norms: Norms, graph: Graph, sizes: Hyperparameters) -> Classifier | None:
    """The classifier of a file, None where the architecture or the file has none.

    Raises:
        ModelError: for a tensor of the wrong shape.
        UnsupportedError: for a tensor type that is not supported.
    """
    if graph.classifier == "none" or not (weights.has("cls.weight") or weights.has("cls.output.weight")):
        return None
    dense = weights.matrix("cls", None, sizes.width) if weights.has("cls.weight") else None
    inner = sizes.width if dense is None else dense.weights.shape[0]
    return Classifier(
        pooling=sizes.classifier_pooling,
        dense=dense,
        activation=_ACTIVATIONS[graph.classifier],
        norm=norms.read(["cls.norm"], inner, optional=True),
        output=weights.matrix("cls.output", None, inner) if weights.has("cls.output.weight") else None,
    )
