"""Short convolutions: before a recurrence, or all that a layer has in place of attention (LFM 2)."""

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
        before, behind, value = np.split(self.project(x), 3, axis=1)
        (past,) = step.cache.states[self.layer]
        mixed = convolve(past, before * value, self.kernel)
        mixed *= behind
        return self.output(mixed)


def convolve(past: Floats, x: Floats, kernel: Floats) -> Floats:
    """Every column of `x`, `(tokens, width)`, with the inputs of the tokens before it, under a kernel `(reach, width)`.

    `past` holds the last reach - 1 inputs, and then those that came.
    """
    inputs = np.concatenate([past, x])
    mixed: Floats = kernel[0] * inputs[: len(x)]
    for place in range(1, len(kernel)):
        mixed += kernel[place] * inputs[place : place + len(x)]
    past[...] = inputs[len(x) :]
    return mixed


def read_kernel(weights: Weights, name: str, width: int, reach: int) -> Floats:
    """A kernel `(reach, width)`, which files hold with its axes exchanged. Raises ModelError for one of another size."""
    return np.ascontiguousarray(weights.vector(name, width * reach).reshape(width, reach).T)


def read_convolution(weights: Weights, sizes: Hyperparameters, index: int) -> ShortConvolution:
    """The convolution of a layer.

    Raises:
        ModelError, UnsupportedError: for tensors that are missing, misshapen or of a type that cannot be multiplied by.
    """
    name, width = f"blk.{index}.shortconv", sizes.width
    reach = sizes.layer[index].states[0][0] + 1
    return ShortConvolution(
        layer=index,
        kernel=read_kernel(weights, f"{name}.conv.weight", width, reach),
        project=weights.matrix(f"{name}.in_proj", 3 * width, width),
        output=weights.matrix(f"{name}.out_proj", width, width),
    )
