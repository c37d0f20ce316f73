"""The short convolutions that some layers have in place of attention (LFM 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantcli.runner.hyperparameters import Hyperparameters
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Matrix, Weights


@dataclass(frozen=True, eq=False, slots=True)
class ShortConvolution:
    """A causal convolution of each column by itself over a few tokens, with a gate before it and one behind.

    `kernel` is float32 `(reach, width)`, the newest token's numbers last. The cache holds the inputs of the last reach - 1.
    """

    layer: int
    kernel: Floats
    project: Matrix
    output: Matrix

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Rows `(tokens, width)` to rows of the same shape."""
        count, reach = x.shape[0], len(self.kernel)
        before, behind, value = np.split(self.project(x), 3, axis=1)
        (past,) = step.cache.states[self.layer]
        inputs = np.concatenate([past, before * value])
        mixed = self.kernel[0] * inputs[:count]
        for place in range(1, reach):
            mixed += self.kernel[place] * inputs[place : place + count]
        past[...] = inputs[count:]
        mixed *= behind
        return self.output(mixed)


def read_convolution(weights: Weights, sizes: Hyperparameters, index: int) -> ShortConvolution:
    """The convolution of a layer.

    Raises:
        ModelError, UnsupportedError: for tensors that are missing, misshapen or of a type that cannot be multiplied by.
    """
    name, width = f"blk.{index}.shortconv", sizes.width
    reach = sizes.layer[index].states[0][0] + 1
    kernel = weights.vector(f"{name}.conv.weight", width * reach).reshape(width, reach)
    return ShortConvolution(
        layer=index,
        kernel=np.ascontiguousarray(kernel.T),
        project=weights.matrix(f"{name}.in_proj", 3 * width, width),
        output=weights.matrix(f"{name}.out_proj", width, width),
    )
