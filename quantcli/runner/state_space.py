"""State-space layers, which carry a state of fixed size along the text: Mamba and Mamba 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.formats.errors import ModelError
from quantcli.kernels.activations import Activation, activation
from quantcli.kernels.scan import scan
from quantcli.runner.convolution import convolve, read_kernel
from quantcli.runner.hyperparameters import Hyperparameters, StateSpace
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Matrix, Norm, Norms, Weights


@dataclass(frozen=True, eq=False, slots=True)
class Mamba:
    """A state for each number, whose steps, inputs and outputs follow from what the convolution gives."""

    layer: int
    sizes: StateSpace
    project: Matrix
    kernel: Floats
    kernel_bias: Floats
    select: Matrix
    step: Matrix
    norms: tuple[Norm, Norm, Norm] | None
    decay: Floats
    skip: Floats
    output: Matrix
    silu: Activation

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Rows `(tokens, width)` to rows of the same shape."""
        count, sizes = x.shape[0], self.sizes
        past, state = step.cache.states[self.layer]
        inner, gate = np.split(self.project(x), 2, axis=1)
        inner = convolve(past, inner, self.kernel) + self.kernel_bias
        self.silu.apply(inner)
        selected = self.select(inner)
        bounds = [sizes.rank, sizes.rank + sizes.states]
        steps, inputs, outputs = (np.ascontiguousarray(part) for part in np.split(selected, bounds, axis=1))
        if self.norms is not None:
            steps, inputs, outputs = (norm(part) for norm, part in zip(self.norms, (steps, inputs, outputs), strict=True))
        steps = _softplus(self.step(steps))
        mixed = np.empty((count, sizes.inner, 1), np.float32)
        inputs, outputs = inputs.reshape(count, 1, -1), outputs.reshape(count, 1, -1)
        scan(inner.reshape(mixed.shape), steps, self.decay, inputs, outputs, state, mixed)
        given = mixed.reshape(count, -1) + inner * self.skip
        gate = np.ascontiguousarray(gate)
        self.silu.gate(gate, 0, given, 0, gate)
        return self.output(gate)


@dataclass(frozen=True, eq=False, slots=True)
class Mamba2:
    """A state for each number, with one decay for a head, and inputs and outputs that groups of heads share."""

    layer: int
    sizes: StateSpace
    project: Matrix
    kernel: Floats
    kernel_bias: Floats
    step_bias: Floats
    decay: Floats
    skip: Floats
    norm: Norm | None
    norm_weight: Floats | None
    output: Matrix
    silu: Activation

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Rows `(tokens, width)` to rows of the same shape."""
        count, sizes = x.shape[0], self.sizes
        shared = sizes.groups * sizes.states
        past, state = step.cache.states[self.layer]
        bounds = [sizes.inner, 2 * sizes.inner + 2 * shared]
        gate, mixed, steps = np.split(self.project(x), bounds, axis=1)
        mixed = convolve(past, mixed, self.kernel) + self.kernel_bias
        self.silu.apply(mixed)
        heads, inputs, outputs = np.split(mixed, [sizes.inner, sizes.inner + shared], axis=1)
        values = np.ascontiguousarray(heads).reshape(count, sizes.rank, -1)
        given = np.empty_like(values)
        scan(
            values, _softplus(steps + self.step_bias), self.decay,
            np.ascontiguousarray(inputs).reshape(count, sizes.groups, -1),
            np.ascontiguousarray(outputs).reshape(count, sizes.groups, -1), state, given,
        )  # fmt: skip
        given += values * self.skip
        rows = given.reshape(count, -1)
        gate = np.ascontiguousarray(gate)
        self.silu.gate(gate, 0, rows, 0, gate)
        if self.norm is not None and self.norm_weight is not None:
            normed = self.norm(gate.reshape(count * sizes.groups, -1)).reshape(count, sizes.groups, -1)
            gate = (normed * self.norm_weight).reshape(count, -1)
        return self.output(gate)


def _softplus(x: Floats) -> Floats:
    return np.logaddexp(x, np.float32(0))


def read_state_space(weights: Weights, graph: Graph, sizes: Hyperparameters, index: int) -> Mamba | Mamba2:
    """The state-space layer `index`.

    Raises:
        ModelError, UnsupportedError: for tensors that are missing, misshapen or of a type that cannot be multiplied by.
    """
    assert sizes.state_space is not None
    return (_read_mamba if graph.recurrent == "mamba" else _read_mamba2)(weights, sizes, sizes.state_space, index)


def _read_mamba(weights: Weights, sizes: Hyperparameters, space: StateSpace, index: int) -> Mamba:
    name, inner, rank, states = f"blk.{index}.ssm", space.inner, space.rank, space.states
    return Mamba(
        layer=index,
        sizes=space,
        project=weights.matrix(f"{name}_in", 2 * inner, sizes.width),
        kernel=read_kernel(weights, f"{name}_conv1d.weight", inner, space.reach),
        kernel_bias=_or_zeros(weights, f"{name}_conv1d.bias", inner),
        select=weights.matrix(f"{name}_x", rank + 2 * states, inner),
        step=weights.matrix(f"{name}_dt", inner, rank),
        norms=_read_norms(weights, sizes, space, name),
        decay=weights.vector(f"{name}_a", inner * states).reshape(inner, states),
        skip=weights.vector(f"{name}_d", inner),
        output=weights.matrix(f"{name}_out", sizes.width, inner),
        silu=activation("silu"),
    )


def _read_norms(weights: Weights, sizes: Hyperparameters, space: StateSpace, name: str) -> tuple[Norm, Norm, Norm] | None:
    """The norms of steps, inputs and outputs: with weights where the file has them, else as it declares."""
    lengths = {"dt": space.rank, "b": space.states, "c": space.states}
    norms = Norms(weights, sizes.norm_epsilon, False)
    if all(weights.has(f"{name}_{part}_norm.weight") for part in lengths):
        found = [norms.make(weights.vector(f"{name}_{part}_norm.weight", count)) for part, count in lengths.items()]
    elif space.normed:
        found = [norms.make(np.ones(count, np.float32)) for count in lengths.values()]
    else:
        return None
    steps, inputs, outputs = found
    return steps, inputs, outputs


def _read_mamba2(weights: Weights, sizes: Hyperparameters, space: StateSpace, index: int) -> Mamba2:
    name, inner, heads, groups = f"blk.{index}.ssm", space.inner, space.rank, space.groups
    shared = groups * space.states
    if heads < 1 or groups < 1 or inner % heads or heads % groups:
        what = f"{inner} numbers, {heads} heads and {groups} groups do not divide one another"
        raise ModelError(f"{weights.file.path}: {what}")
    norm_weight = weights.optional_vector(f"{name}_norm.weight", inner)
    norms = Norms(weights, sizes.norm_epsilon, False)
    return Mamba2(
        layer=index,
        sizes=space,
        project=weights.matrix(f"{name}_in", 2 * inner + 2 * shared + heads, sizes.width),
        kernel=read_kernel(weights, f"{name}_conv1d.weight", inner + 2 * shared, space.reach),
        kernel_bias=_or_zeros(weights, f"{name}_conv1d.bias", inner + 2 * shared),
        step_bias=weights.vector(f"{name}_dt.bias", heads),
        decay=weights.vector(f"{name}_a", heads).reshape(heads, 1),
        skip=weights.vector(f"{name}_d", heads).reshape(heads, 1),
        norm=None if norm_weight is None else norms.make(np.ones(inner // groups, np.float32)),
        norm_weight=None if norm_weight is None else norm_weight.reshape(groups, -1),
        output=weights.matrix(f"{name}_out", sizes.width, inner),
        silu=activation("silu"),
    )


def _or_zeros(weights: Weights, name: str, count: int) -> Floats:
    given = weights.optional_vector(name, count)
    return np.zeros(count, np.float32) if given is None else given
