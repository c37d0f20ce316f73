"""The KV cache, and the recurrent states of layers without keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import GenerationError, UsageError
from quantcli.kernels.attention.cache_types import STORAGES, Storage
from quantcli.kernels.attention.one_query import attention_kernels

BATCH: Final = 512
"""Most tokens per batch. It bounds the memory for activations of a long prompt and for sliding-window caches."""

Floats = NDArray[np.float32]

NOTHING: Final[Floats] = np.empty(0, np.float32)
"""Stands for the slopes of attention without ALiBi, and for the sinks of attention without attention sinks."""


@dataclass(frozen=True)
class LayerMemory:
    """What a layer keeps in the cache: keys and values, recurrent states, or nothing.

    - `kv_heads` is 0 for a layer without keys and values.
    - `key_size` and `value_size` are the sizes of a head. With a `value_size` of 0 values are a prefix of the keys (MLA).
    - `window` is the size of the attention window; 0: full attention. It slides, or where `chunked` is the current chunk.
    - `ahead` is how many later positions a query may attend to, where they are in the cache.
    - `rotated` says whether RoPE was applied to the first or the last dimensions of a key.
    - `states` are the shapes of a recurrent layer's float32 states.
    """

    kv_heads: int = 0
    key_size: int = 0
    value_size: int = 0
    window: int = 0
    chunked: bool = False
    ahead: int = 0
    rotated: Literal["none", "first", "last"] = "none"
    states: tuple[tuple[int, ...], ...] = ()

    def capacity(self, context: int) -> int:
        """How many positions the layer keeps, for a context of this length."""
        return min(context, self.window - 1 + 2 * BATCH) if self.window and not self.ahead else context


class HasMemory(Protocol):
    """The hyperparameters that a cache needs."""

    @property
    def memory(self) -> Sequence[LayerMemory]:
        """What each layer keeps in the cache."""


def check_cache_type(cache_type: str) -> None:
    """Raises UsageError for an unknown type."""
    if cache_type not in STORAGES:
        raise UsageError(f"unknown cache type {cache_type!r}, expected one of {', '.join(STORAGES)}")


@dataclass(frozen=True)
class View:
    """Scale, softcap, mask, ALiBi slopes and attention sinks of a layer: see `attend` of `kernels.attention.one_query`."""

    scale: np.float32
    softcap: np.float32
    window: int
    chunk: int
    ahead: int
    slopes: Floats
    sinks: Floats


class LayerCache:
    """The keys and values of a layer, `(kv_heads, capacity, elements)`, from position `first` on.

    A layer with a window has room for more than the window, so that its contents are moved only rarely. With a `value_size`
    of 0 values are a prefix of the keys. Otherwise, quantized types store heads after a Hadamard transform (`hadamard`), as
    llama.cpp does.
    """

    def __init__(self, sizes: LayerMemory, context: int, cache_type: str) -> None:
        self.sizes = sizes
        self._kernels = attention_kernels(cache_type)
        storage = self._kernels.storage
        capacity = sizes.capacity(context)
        self.first = 0
        self.keys = _allocate(sizes.kv_heads, capacity, sizes.key_size, storage)
        self.values = _allocate(sizes.kv_heads, capacity, sizes.value_size, storage) if sizes.value_size else self.keys
        transforms = storage.packed and sizes.value_size > 0
        self._key_hadamard = hadamard(sizes.key_size, False) if transforms else None
        self._value_hadamard = hadamard(sizes.value_size, True) if transforms else None

    def store(self, position: int, key: Floats, value: Floats | None = None) -> None:
        """Store keys and values, float32 `(tokens, kv_heads, head size)`, of at most `BATCH` tokens from `position` on."""
        slot = self._make_room(position, len(key))
        self._kernels.store(_transformed(key, self._key_hadamard), self.keys, slot)
        if value is not None:
            self._kernels.store(_transformed(value, self._value_hadamard), self.values, slot)

    def attend(self, query: Floats, position: int, view: View, out: Floats) -> None:
        """Attention of queries `(tokens, heads, key_size)` of tokens from `position` on, whose keys are stored already.

        The result goes into `out`, `(tokens, heads, value_size)`.
        """
        query, slot = _transformed(query, self._key_hadamard), position - self.first
        self._kernels.attend(
            query, self.keys, self.values, slot, view.scale, view.softcap, view.window, view.chunk, view.ahead, view.slopes,
            view.sinks, out,
        )  # fmt: skip
        if self._value_hadamard is not None:
            out[...] = _transformed(out, self._value_hadamard)

    def stored(self, start: int, stop: int) -> tuple[Floats, Floats]:
        """Keys and values of positions `start` to `stop`, float32 `(tokens, kv_heads, head size)`, dequantized."""
        place, sizes = slice(start - self.first, stop - self.first), self.sizes
        keys = _transformed(self._restored(self.keys, place, sizes.key_size), self._key_hadamard)
        if self.values is self.keys:
            return keys, keys[:, :, : sizes.value_size]
        return keys, _transformed(self._restored(self.values, place, sizes.value_size), self._value_hadamard)

    def holds(self, length: int) -> bool:
        """Whether everything that a token at position `length` attends to is still in the cache."""
        return self.first <= self._first_seen(length)

    def cut(self, keep: int, discard: int, length: int, rotate: Callable[[Floats], None] | None) -> None:
        """Context shift: of `length` positions, drop `discard` after the first `keep`, and move later ones there.

        `rotate` undoes RoPE by `discard` positions on keys, float32 `(tokens, kv_heads, head size)`, in place.
        """
        start, first = max(self.first, keep + discard), self.first
        if first > keep:  # the window begins after the kept positions
            first = start - discard
        moved, target = slice(start - self.first, length - self.first), start - discard - first
        if self.values is not self.keys:
            self.values[:, target : target + length - start] = self.values[:, moved].copy()
        if rotate is None:
            self.keys[:, target : target + length - start] = self.keys[:, moved].copy()
        else:
            keys = _transformed(self._restored(self.keys, moved, self.sizes.key_size), self._key_hadamard)
            rotate(keys)
            self._kernels.store(_transformed(keys, self._key_hadamard), self.keys, target)
        self.first = first

    def _restored(self, array: NDArray[Any], place: slice, size: int) -> Floats:
        plain = self._kernels.storage.restore(np.ascontiguousarray(array[:, place]))
        return np.ascontiguousarray(plain[:, :, :size].swapaxes(0, 1))

    def nbytes(self, length: int) -> int:
        """Bytes of the filled positions, for a sequence of `length` tokens."""
        arrays = [self.keys] if self.values is self.keys else [self.keys, self.values]
        return sum(array[:, : length - self.first].nbytes for array in arrays)

    def _first_seen(self, position: int) -> int:
        window = self.sizes.window
        if not window:
            return 0
        return position // window * window if self.sizes.chunked else max(0, position + 1 - window)

    def _make_room(self, position: int, count: int) -> int:
        """The slot of `position` in the arrays. Moves the window to the front where `count` tokens would not fit."""
        capacity = self.keys.shape[1]
        if position - self.first + count > capacity:
            first = self._first_seen(position)
            kept = slice(first - self.first, position - self.first)
            for array in {id(array): array for array in (self.keys, self.values)}.values():
                array[:, : position - first] = array[:, kept].copy()
            self.first = first
        return position - self.first


class Cache:
    """The cache of a sequence of up to `context` tokens, of which `length` are filled.

    `layers` are the KV caches. `states[layer]` are the float32 states of a recurrent layer after exactly `length` tokens.
    The operating system allocates pages as they are written, so unused context costs no memory.
    """

    def __init__(self, sizes: HasMemory, context: int, cache_type: str = "f16") -> None:
        """Raises UsageError for an unknown type or an empty context, GenerationError where memory is insufficient."""
        check_cache_type(cache_type)
        if context < 1:
            raise UsageError(f"a context of {context} tokens, expected at least 1")
        self.context = context
        self.type = cache_type
        self.length = 0
        memory = sizes.memory
        try:
            self.layers = [LayerCache(layer, context, cache_type) for layer in memory]
        except (MemoryError, ValueError) as error:
            what = f"out of memory for a context of {context} tokens"
            raise GenerationError(what, hint="use a shorter context: --ctx") from error
        self.states = [[np.zeros(shape, np.float32) for shape in layer.states] for layer in memory]

    def require(self, count: int) -> None:
        """Raises GenerationError unless `count` more tokens fit."""
        if self.length + count > self.context:
            raise GenerationError(
                f"the context of {self.context} tokens is full: {self.length} in it, {count} more to come",
                hint=f"--ctx {self.length + count} or more",
            )

    def rewind(self, length: int) -> int:
        """Truncate the cache to its first `length` tokens, and return how many are left.

        It is emptied where that is impossible: for recurrent states, and where a window no longer has the positions needed.
        """
        if length != self.length and (any(self.states) or not all(layer.holds(length) for layer in self.layers)):
            length = 0
        if length == 0:
            for layer in self.layers:
                layer.first = 0
            for states in self.states:
                for state in states:
                    state[...] = 0
        self.length = length
        return length

    @property
    def nbytes(self) -> int:
        """Bytes of the filled positions and of the recurrent states."""
        return sum(layer.nbytes(self.length) for layer in self.layers) + sum(
            state.nbytes for states in self.states for state in states
        )


def full_bytes(sizes: HasMemory, context: int, cache_type: str) -> int:
    """Bytes of a cache whose context is full, without allocating it.

    Raises:
        UsageError: for an unknown type.
    """
    check_cache_type(cache_type)
    storage, total = STORAGES[cache_type], 0
    for layer in sizes.memory:
        elements = storage.elements(layer.key_size) + storage.elements(layer.value_size)
        total += layer.kv_heads * layer.capacity(context) * elements * storage.dtype.itemsize
        total += sum(4 * math.prod(shape) for shape in layer.states)
    return total


def _allocate(heads: int, capacity: int, size: int, storage: Storage) -> NDArray[Any]:
    return np.zeros((heads, capacity, storage.elements(size)), storage.dtype)


@cache
def hadamard(size: int, small: bool) -> Floats | None:
    """The normalized Hadamard matrix, `(n, n)`, for heads of size `size`; None where 64 does not divide the size.

    It is its own inverse. It spreads outliers over a head, which reduces the quantization error of low-bit blocks. n is 64
    where `small`, else the largest power of two that divides the size. Source: llama.cpp's `llama-kv-cache.cpp`.
    """
    if not size or size % 64:
        return None
    n = 64 if small else size & -size
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(n))


def _transformed(heads: Floats, matrix: Floats | None) -> Floats:
    """Multiply every `len(matrix)` consecutive elements of heads `(tokens, heads, head size)` by the matrix."""
    if matrix is None:
        return heads
    return (heads.reshape(-1, len(matrix)) @ matrix).reshape(heads.shape)
