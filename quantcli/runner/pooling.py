"""Pooling: one vector for a text, from the hidden states of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

POOLINGS: Final[Mapping[str, Callable[[Floats], Floats]]] = MappingProxyType(
    {
        "none": lambda rows: rows,
        "mean": lambda rows: rows.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32),
        "cls": lambda rows: rows[:1],
        "last": lambda rows: rows[-1:],
    }
)
"""Pooling of a text's hidden states `(tokens, width)`, in the order of the values of `{arch}.pooling_type`."""
