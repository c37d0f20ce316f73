"""The gated short convolution of LFM 2, in place of attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.runner.cache import LayerMemory
from quantcli.runner.metadata import MetadataReader
from quantcli.runner.mixers.causal_convolution import convolve, read_kernel
from quantcli.runner.sizes import Hyperparameters
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Matrix, Weights


@dataclass(frozen=True)
class ShortConvolutionSizes:
    """A causal convolution over `kernel_size` tokens."""

    kernel_size: int
    width: int

    @property
    def memory(self) -> LayerMemory:
        """The convolution state."""
        return LayerMemory(states=((self.kernel_size - 1, self.width),))

    @property
    def rotatable(self) -> int:
        """Nothing."""
        return 0

    def load(self, weights: Weights, graph: Graph, sizes: Hyperparameters, index: int) -> ShortConvolution:
        """The convolution of layer `index`.

        Raises:
            ModelError: for a tensor that is missing or has the wrong shape.
            UnsupportedError: for a tensor type that is not supported.
        """
        name, width = f"blk.{index}.shortconv", self.width
        return ShortConvolution(
            layer=index,
            kernel=read_kernel(weights, f"{name}.conv.weight", width, self.kernel_size),
            project=weights.matrix(f"{name}.in_proj", 3 * width, width),
            output=weights.matrix(f"{name}.out_proj", width, width),
        )


@dataclass(frozen=True, eq=False, slots=True)
class ShortConvolution:
    """A causal convolution with a gate on its input and one on its output. `kernel` is float32 `(kernel_size, width)`."""

    layer: int
    kernel: Floats
    project: Matrix
    output: Matrix

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Hidden states `(tokens, width)` to an output of the same shape. Updates the convolution state."""
        before, behind, value = np.split(self.project(x), 3, axis=1)
        (past,) = step.cache.states[self.layer]
        mixed = convolve(past, before * value, self.kernel)
        mixed *= behind
        return self.output(mixed)


def read_sizes(read: MetadataReader, graph: Graph, count: int, layers: Sequence[int]) -> list[ShortConvolutionSizes]:
    """The hyperparameters of `layers`, all the same.

    Raises:
        ModelError: for metadata that are missing.
    """
    sizes = ShortConvolutionSizes(read.count("shortconv.l_cache"), read.count("embedding_length"))
    return [sizes] * len(layers)
