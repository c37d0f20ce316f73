"""Short causal convolutions of each column by itself (depthwise): a layer's mixer, or before a recurrence."""

from __future__ import annotations

import numpy as np

from quantcli.runner.weights import Floats, Weights


def convolve(past: Floats, x: Floats, kernel: Floats) -> Floats:
    """Every column of `x`, `(tokens, width)`, with the inputs of the tokens before it, under a kernel `(size, width)`, the
    newest token's weights last.

    `past` holds the last `size - 1` inputs, and then those that came.
    """
    inputs = np.concatenate([past, x])
    mixed: Floats = kernel[0] * inputs[: len(x)]
    for place in range(1, len(kernel)):
        mixed += kernel[place] * inputs[place : place + len(x)]
    past[...] = inputs[len(x) :]
    return mixed


def read_kernel(weights: Weights, name: str, width: int, size: int) -> Floats:
    """A kernel `(size, width)`, which files hold with its axes exchanged. Raises ModelError for one of another size."""
    return np.ascontiguousarray(weights.vector(name, width * size).reshape(width, size).T)
