"""The cache: what every layer remembers of the tokens so far."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.formats.errors import GenerationError, UsageError
from quantcli.kernels.attention import attention_kernels, padded_head_size
from quantcli.runner.hyperparameters import Hyperparameters, LayerSizes

CACHE_TYPES: Final[Mapping[str, type[np.generic]]] = MappingProxyType({"f16": np.uint16, "f32": np.float32})
"""Precisions of a cache, and the dtype their numbers are kept in (halves as their bits)."""


def check_cache_type(precision: str) -> None:
    """Raises UsageError for an unknown precision."""
    if precision not in CACHE_TYPES:
        raise UsageError(f"unknown cache type {precision!r}, expected one of {', '.join(CACHE_TYPES)}")


class Cache:
    """Room for the keys and values of `context` tokens.

    `keys[layer]` and `values[layer]` are `(kv_heads, context, padded_head_size)`, empty for a layer without attention, and
    the same array where values are the first numbers of keys; the first `length` positions are filled. `states[layer]` are
    the float32 arrays of a recurrent layer, which hold for `length` tokens and no other number.
    The operating system gives memory as it is written, so an unused context costs nothing.
    """

    def __init__(self, sizes: Hyperparameters, context: int, precision: str = "f16") -> None:
        """Raises UsageError for an unknown precision or a context of no tokens, GenerationError for one too large."""
        check_cache_type(precision)
        if context < 1:
            raise UsageError(f"a context of {context} tokens holds nothing")
        self.context = context
        self.length = 0
        dtype = CACHE_TYPES[precision]
        self.kernels = attention_kernels(np.dtype(dtype))
        try:
            self.keys: list[NDArray[Any]] = [_room(layer, layer.key_size, context, dtype) for layer in sizes.layer]
            self.values: list[NDArray[Any]] = [
                _room(layer, layer.value_size, context, dtype) if layer.value_size else keys
                for layer, keys in zip(sizes.layer, self.keys, strict=True)
            ]
        except (MemoryError, ValueError) as error:
            what = f"there is no memory for a context of {context} tokens"
            raise GenerationError(what, hint="--ctx with fewer makes it smaller") from error
        self.states = [[np.zeros(shape, np.float32) for shape in layer.states] for layer in sizes.layer]

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
        arrays = {id(array): array for array in (*self.keys, *self.values)}
        positions = sum(array.nbytes for array in arrays.values()) // self.context * self.length
        return positions + sum(state.nbytes for states in self.states for state in states)


def _room(layer: LayerSizes, size: int, context: int, dtype: type[np.generic]) -> NDArray[Any]:
    return np.zeros((layer.kv_heads, context, padded_head_size(size)), dtype)
