"""Mamba 2: an SSM with one scalar decay (A) per head (Dao and Gu, "Transformers are SSMs", 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.core.errors import ModelError
from quantcli.kernels.activation_functions import Activation, activation
from quantcli.kernels.selective_scan import scan
from quantcli.runner.cache import LayerMemory
from quantcli.runner.metadata import MetadataReader
from quantcli.runner.mixers.causal_convolution import convolve, read_kernel
from quantcli.runner.sizes import Hyperparameters
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Matrix, Norm, Norms, Weights


@dataclass(frozen=True)
class Mamba2Sizes:
    """`inner` channels in `heads`, with an SSM state of size `states` each (N). `groups` of heads share B and C."""

    kernel_size: int
    inner: int
    states: int
    heads: int
    groups: int

    @property
    def convolved(self) -> int:
        """Channels of the convolution: those of the heads (x), and B and C of all groups."""
        return self.inner + 2 * self.groups * self.states

    @property
    def memory(self) -> LayerMemory:
        """The convolution state and the SSM state."""
        states = (self.heads, self.inner // self.heads, self.states)
        return LayerMemory(states=((self.kernel_size - 1, self.convolved), states))

    @property
    def rotatable(self) -> int:
        """Nothing."""
        return 0

    def load(self, weights: Weights, graph: Graph, sizes: Hyperparameters, index: int) -> Mamba2:
        """The mixer of layer `index`.

        Raises:
            ModelError: for a tensor that is missing or has the wrong shape.
            UnsupportedError: for a tensor type that is not supported.
        """
        name, inner, heads, groups = f"blk.{index}.ssm", self.inner, self.heads, self.groups
        norm_weight = weights.optional_vector(f"{name}_norm.weight", inner)
        norms = Norms(weights, sizes.norm_epsilon, False)
        return Mamba2(
            layer=index,
            sizes=self,
            project=weights.matrix(f"{name}_in", inner + self.convolved + heads, sizes.width),
            kernel=read_kernel(weights, f"{name}_conv1d.weight", self.convolved, self.kernel_size),
            kernel_bias=weights.vector_or_zeros(f"{name}_conv1d.bias", self.convolved),
            step_bias=weights.vector(f"{name}_dt.bias", heads),
            decay=weights.vector(f"{name}_a", heads).reshape(heads, 1),
            skip=weights.vector(f"{name}_d", heads).reshape(heads, 1),
            norm=None if norm_weight is None else norms.make(np.ones(inner // groups, np.float32)),
            norm_weight=None if norm_weight is None else norm_weight.reshape(groups, -1),
            output=weights.matrix(f"{name}_out", sizes.width, inner),
            silu=activation("silu"),
        )


@dataclass(frozen=True, eq=False, slots=True)
class Mamba2:
    """A Mamba 2 block. `decay` is A and `skip` is D, both `(heads, 1)`. `norm` is the RMSNorm over each group."""

    layer: int
    sizes: Mamba2Sizes
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
        """Hidden states `(tokens, width)` to an output of the same shape. Updates the convolution and SSM states."""
        count, sizes = x.shape[0], self.sizes
        shared = sizes.groups * sizes.states
        past, state = step.cache.states[self.layer]
        gate, mixed, steps = np.split(self.project(x), [sizes.inner, sizes.inner + sizes.convolved], axis=1)
        mixed = convolve(past, mixed, self.kernel) + self.kernel_bias
        self.silu.apply(mixed)
        heads, inputs, outputs = np.split(mixed, [sizes.inner, sizes.inner + shared], axis=1)
        values = np.ascontiguousarray(heads).reshape(count, sizes.heads, -1)
        given = np.empty_like(values)
        scan(
            values, np.logaddexp(steps + self.step_bias, np.float32(0)), self.decay,
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


def read_sizes(read: MetadataReader, graph: Graph, count: int, layers: Sequence[int]) -> list[Mamba2Sizes]:
    """The hyperparameters of `layers`, all the same.

    Raises:
        ModelError: for metadata that are missing or contradict each other.
    """
    sizes = Mamba2Sizes(
        kernel_size=read.count("ssm.conv_kernel"),
        inner=read.count("ssm.inner_size"),
        states=read.count("ssm.state_size"),
        heads=read.count("ssm.time_step_rank"),
        groups=read.count("ssm.group_count", 0),
    )
    if sizes.groups < 1 or sizes.inner % sizes.heads or sizes.heads % sizes.groups:
        what = f"{sizes.inner} numbers, {sizes.heads} heads and {sizes.groups} groups do not divide one another"
        raise ModelError(f"{read.file.path}: {what}")
    return [sizes] * len(layers)
