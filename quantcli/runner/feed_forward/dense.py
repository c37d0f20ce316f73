"""Dense feed-forward networks (MLPs): up-projection, activation, down-projection, with or without a gate (GLU)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.core.errors import ModelError
from quantcli.kernels.activation_functions import Activation, activation
from quantcli.runner.metadata import MetadataReader
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Matrix, Weights


@dataclass(frozen=True, eq=False, slots=True)
class Gated:
    """A gated MLP such as SwiGLU: down(f(gate(x)) * up(x))."""

    gate: Matrix
    up: Matrix
    down: Matrix
    activation: Activation

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Hidden states `(tokens, width)` to an output of the same shape."""
        gate = self.gate(x)
        self.activation.gate(gate, 0, self.up(x), 0, gate)
        return self.down(gate)


@dataclass(frozen=True, eq=False, slots=True)
class FusedGated:
    """A gated MLP with a fused gate and up projection, gate first."""

    gate_up: Matrix
    down: Matrix
    activation: Activation

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Hidden states `(tokens, width)` to an output of the same shape."""
        both = self.gate_up(x)
        out = np.empty((x.shape[0], self.down.columns), np.float32)
        self.activation.gate(both, 0, both, self.down.columns, out)
        return self.down(out)


@dataclass(frozen=True, eq=False, slots=True)
class Plain:
    """An MLP without a gate: down(f(up(x)))."""

    up: Matrix
    down: Matrix
    activation: Activation

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Hidden states `(tokens, width)` to an output of the same shape."""
        inner = self.up(x)
        self.activation.apply(inner)
        return self.down(inner)


Mlp = Gated | FusedGated | Plain
Form = Callable[[Weights, Matrix, str, str, Activation], Mlp]
"""Loads an MLP, given its up-projection, the prefix and suffix of its tensor names, and its activation function."""


def _gated(weights: Weights, up: Matrix, prefix: str, suffix: str, kernels: Activation) -> Mlp:
    rows, width = up.weights.shape[0], up.columns
    gate = weights.matrix(f"{prefix}ffn_gate{suffix}", rows, width)
    return Gated(gate, up, weights.matrix(f"{prefix}ffn_down{suffix}", width, rows), kernels)


def _plain(weights: Weights, up: Matrix, prefix: str, suffix: str, kernels: Activation) -> Mlp:
    return Plain(up, weights.matrix(f"{prefix}ffn_down{suffix}", up.columns, up.weights.shape[0]), kernels)


def _fused_gated(weights: Weights, up: Matrix, prefix: str, suffix: str, kernels: Activation) -> Mlp:
    rows = up.weights.shape[0]
    if rows % 2:
        expected = "gate and up in an even number"
        raise ModelError(f"{weights.file.path}: tensor {up.name!r} has {rows} rows, expected {expected}")
    return FusedGated(up, weights.matrix(f"{prefix}ffn_down{suffix}", up.columns, rows // 2), kernels)


FORMS: Final[Mapping[str, Form]] = MappingProxyType({"gated": _gated, "plain": _plain, "fused_gated": _fused_gated})
"""By the graph flag `mlp`."""


def load_mlp(weights: Weights, graph: Graph, width: int, prefix: str, suffix: str = "") -> Mlp:
    """The MLP whose tensors are `PREFIXffn_upSUFFIX` and so on.

    Raises:
        ModelError: for a tensor that is missing or has the wrong shape.
        UnsupportedError: for a tensor type that is not supported.
    """
    up = weights.matrix(f"{prefix}ffn_up{suffix}", None, width)
    return FORMS[graph.mlp](weights, up, prefix, suffix, activation(graph.activation))


@dataclass(frozen=True)
class DenseSizes:
    """Empty: the intermediate size follows from the tensors' shapes."""

    def load(self, weights: Weights, graph: Graph, width: int, prefix: str) -> Mlp:
        """As `load_mlp`."""
        return load_mlp(weights, graph, width, prefix)


def read_sizes(read: MetadataReader, graph: Graph) -> DenseSizes:
    """The hyperparameters of a model's dense MLPs."""
    return DenseSizes()
