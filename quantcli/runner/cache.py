"""The key-value cache: what every layer remembers of the tokens so far."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.formats.errors import GenerationError, UsageError
from quantcli.kernels.attention import attention_kernels, padded_head_size
from quantcli.runner.hyperparameters import Hyperparameters

CACHE_TYPES: Final[Mapping[str, type[np.generic]]] = MappingProxyType({"f16": np.uint16, "f32": np.float32})
"""Precisions of a cache, and the dtype their numbers are kept in (halves as their bits)."""


class Cache:
    """Room for the keys and values of `context` tokens.

    `keys[layer]` and `values[layer]` are `(kv_heads, context, padded_head_size)`; the first `length` positions are filled.
    The operating system gives memory as it is written, so an unused context costs nothing.
    """

    def __init__(self, sizes: Hyperparameters, context: int, precision: str = "f16") -> None:
        """Raises UsageError for an unknown precision or a context of no tokens."""
        dtype = CACHE_TYPES.get(precision)
        if dtype is None:
            raise UsageError(f"unknown cache type {precision!r}, expected one of {', '.join(CACHE_TYPES)}")
        if context < 1:
            raise UsageError(f"a context of {context} tokens holds nothing")
        shape = (sizes.kv_heads, context, padded_head_size(sizes.head_size))
        self.context = context
        self.length = 0
        self.kernels = attention_kernels(np.dtype(dtype))
        self.keys: list[NDArray[Any]] = [np.zeros(shape, dtype) for _ in range(sizes.layers)]
        self.values: list[NDArray[Any]] = [np.zeros(shape, dtype) for _ in range(sizes.layers)]

    def require(self, count: int) -> None:
        """Raises GenerationError unless `count` more tokens fit."""
        if self.length + count > self.context:
            raise GenerationError(
                f"the context of {self.context} tokens is full: {self.length} in it, {count} more to come",
                hint=f"--ctx {self.length + count} or more makes room",
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the filled part."""
        whole = sum(array.nbytes for array in (*self.keys, *self.values))
        return whole // self.context * self.length
