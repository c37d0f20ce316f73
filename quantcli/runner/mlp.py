"""The dense half of a layer: up, through an activation, and down again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.formats.errors import ModelError
from quantcli.kernels.activations import Activation, activation
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Matrix, Weights


@dataclass(frozen=True, eq=False, slots=True)
class Gated:
    """down(f(gate(x)) * up(x))."""

    gate: Matrix
    up: Matrix
    down: Matrix
    activation: Activation

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Rows `(tokens, width)` to rows of the same shape."""
        gate = self.gate(x)
        self.activation.gate(gate, 0, self.up(x), 0, gate)
        return self.down(gate)


@dataclass(frozen=True, eq=False, slots=True)
class FusedGated:
    """The same with gate and up in one projection, the gate first."""

    gate_up: Matrix
    down: Matrix
    activation: Activation

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Rows `(tokens, width)` to rows of the same shape."""
        both = self.gate_up(x)
        out = np.empty((x.shape[0], self.down.columns), np.float32)
        self.activation.gate(both, 0, both, self.down.columns, out)
        return self.down(out)


@dataclass(frozen=True, eq=False, slots=True)
class Plain:
    """down(f(up(x)))."""

    up: Matrix
    down: Matrix
    activation: Activation

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Rows `(tokens, width)` to rows of the same shape."""
        inner = self.up(x)
        self.activation.apply(inner)
        return self.down(inner)


Mlp = Gated | FusedGated | Plain


def read_mlp(weights: Weights, graph: Graph, width: int, prefix: str, suffix: str = "") -> Mlp:
    """The MLP whose tensors are `PREFIXffn_gateSUFFIX` and so on.

    Raises:
        ModelError, UnsupportedError: for tensors that are missing, misshapen or of a type that cannot be multiplied by.
    """
    up_name, down_name = f"{prefix}ffn_up{suffix}", f"{prefix}ffn_down{suffix}"
    up = weights.matrix(up_name, None, width)
    rows, kernels = up.weights.shape[0], activation(graph.activation)
    if graph.mlp == "gated":
        gate = weights.matrix(f"{prefix}ffn_gate{suffix}", rows, width)
        return Gated(gate, up, weights.matrix(down_name, width, rows), kernels)
    if graph.mlp == "plain":
        return Plain(up, weights.matrix(down_name, width, rows), kernels)
    if rows % 2:
        expected = "gate and up in an even number"
        raise ModelError(f"{weights.file.path}: tensor '{up_name}.weight' has {rows} rows, expected {expected}")
    return FusedGated(up, weights.matrix(down_name, width, rows // 2), kernels)
