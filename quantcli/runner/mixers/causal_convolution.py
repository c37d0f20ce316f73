"""Short depthwise causal convolutions, as a token mixer or before an SSM."""

from __future__ import annotations

import numpy as np

from quantcli.runner.weights import Floats, Weights


def convolve(past: Floats, x: Floats, kernel: Floats) -> Floats:
    """Causal depthwise convolution of `x`, `(tokens, width)`, with a kernel `(size, width)`, newest token last.

    `past`, `(size - 1, width)`, is the convolution state: the inputs of the tokens before. It is updated in place.
    """
    inputs = np.concatenate([past, x])
    mixed: Floats = kernel[0] * inputs[: len(x)]
    for place in range(1, len(kernel)):
        mixed += kernel[place] * inputs[place : place + len(x)]
    past[...] = inputs[len(x) :]
    return mixed


def read_kernel(weights: Weights, name: str, width: int, size: int) -> Floats:
    """A kernel `(size, width)`, which is stored transposed. Raises ModelError for one of another size."""
    return np.ascontiguousarray(weights.vector(name, width * size).reshape(width, size).T)
