"""Mamba: a selective state space model (SSM) per channel (Gu and Dao, "Mamba", 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.kernels.activation_functions import Activation, activation
from quantcli.kernels.selective_scan import scan
from quantcli.runner.cache import LayerMemory
from quantcli.runner.metadata import MetadataReader
from quantcli.runner.mixers.causal_convolution import convolve, read_kernel
from quantcli.runner.sizes import Hyperparameters
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Matrix, Norm, Norms, Weights


@dataclass(frozen=True)
class MambaSizes:
    """`inner` channels (D) with an SSM state of size `states` each (N). `rank` is that of the step size projection (delta).

    `normed` says that delta, B and C are RMS-normalized even where the file has no weights for it.
    """

    kernel_size: int
    inner: int
    states: int
    rank: int
    normed: bool

    @property
    def memory(self) -> LayerMemory:
        """The convolution state and the SSM state."""
        return LayerMemory(states=((self.kernel_size - 1, self.inner), (self.inner, 1, self.states)))

    @property
    def rotatable(self) -> int:
        """Nothing."""
        return 0

    def load(self, weights: Weights, graph: Graph, sizes: Hyperparameters, index: int) -> Mamba:
        """The mixer of layer `index`.

        Raises:
            ModelError: for a tensor that is missing or has the wrong shape.
            UnsupportedError: for a tensor type that is not supported.
        """
        name, inner, rank, states = f"blk.{index}.ssm", self.inner, self.rank, self.states
        return Mamba(
            layer=index,
            sizes=self,
            project=weights.matrix(f"{name}_in", 2 * inner, sizes.width),
            kernel=read_kernel(weights, f"{name}_conv1d.weight", inner, self.kernel_size),
            kernel_bias=weights.vector_or_zeros(f"{name}_conv1d.bias", inner),
            select=weights.matrix(f"{name}_x", rank + 2 * states, inner),
            step=weights.matrix(f"{name}_dt", inner, rank),
            norms=self._norms(Norms(weights, sizes.norm_epsilon, False), name),
            decay=weights.vector(f"{name}_a", inner * states).reshape(inner, states),
            skip=weights.vector(f"{name}_d", inner),
            output=weights.matrix(f"{name}_out", sizes.width, inner),
            silu=activation("silu"),
        )

    def _norms(self, norms: Norms, name: str) -> tuple[Norm, ...]:
        """The norms of delta, B and C: with weights where the file has all three, else without, or none."""
        lengths = {f"{name}_dt_norm.weight": self.rank, **{f"{name}_{part}_norm.weight": self.states for part in "bc"}}
        if all(map(norms.weights.has, lengths)):
            return tuple(norms.make(norms.weights.vector(key, length)) for key, length in lengths.items())
        return tuple(norms.make(np.ones(length, np.float32)) for length in lengths.values()) if self.normed else ()


@dataclass(frozen=True, eq=False, slots=True)
class Mamba:
    """A Mamba block. `select` projects the convolution's output to delta, B and C; `step` expands delta to all channels.

    `decay` is A, `(inner, states)`, and `skip` is D, `(inner,)`.
    """

    layer: int
    sizes: MambaSizes
    project: Matrix
    kernel: Floats
    kernel_bias: Floats
    select: Matrix
    step: Matrix
    norms: tuple[Norm, ...]
    decay: Floats
    skip: Floats
    output: Matrix
    silu: Activation

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Hidden states `(tokens, width)` to an output of the same shape. Updates the convolution and SSM states."""
        count, sizes = x.shape[0], self.sizes
        past, state = step.cache.states[self.layer]
        inner, gate = np.split(self.project(x), 2, axis=1)
        inner = convolve(past, inner, self.kernel) + self.kernel_bias
        self.silu.apply(inner)
        selected = self.select(inner)
        bounds = [sizes.rank, sizes.rank + sizes.states]
        steps, inputs, outputs = (np.ascontiguousarray(columns) for columns in np.split(selected, bounds, axis=1))
        if self.norms:
            steps, inputs, outputs = (norm(rows) for norm, rows in zip(self.norms, (steps, inputs, outputs), strict=True))
        steps = np.logaddexp(self.step(steps), np.float32(0))
        mixed = np.empty((count, sizes.inner, 1), np.float32)
        inputs, outputs = inputs.reshape(count, 1, -1), outputs.reshape(count, 1, -1)
        scan(inner.reshape(mixed.shape), steps, self.decay, inputs, outputs, state, mixed)
        given = mixed.reshape(count, -1) + inner * self.skip
        gate = np.ascontiguousarray(gate)
        self.silu.gate(gate, 0, given, 0, gate)
        return self.output(gate)


def read_sizes(read: MetadataReader, graph: Graph, count: int, layers: Sequence[int]) -> list[MambaSizes]:
    """The hyperparameters of `layers`, all the same.

    Raises:
        ModelError: for metadata that are missing.
    """
    sizes = MambaSizes(
        kernel_size=read.count("ssm.conv_kernel"),
        inner=read.count("ssm.inner_size"),
        states=read.count("ssm.state_size"),
        rank=read.count("ssm.time_step_rank"),
        normed=read.raw("ssm.dt_b_c_rms") is True,
    )
    return [sizes] * len(layers)
