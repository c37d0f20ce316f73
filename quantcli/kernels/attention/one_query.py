"""Attention of a few new tokens over all cached ones. The KV cache may have any of the types in `cache_types`.

Keys and values may be of different sizes, and one array may be both: values are then the first numbers of the keys.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.attention.cache_types import STEP, STORAGES, Floats, Storage
from quantcli.kernels.attention.many_queries import attend_many_kernel, first_seen
from quantcli.kernels.elementwise import exponential
from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.products.many_columns import COLUMNS
from quantcli.kernels.simd import LANES, fma, load, max_lanes, maximum, shuffle, splat, store, sum_lanes
from quantcli.kernels.threads import parallel_kernel
from quantcli.kernels.threads.loops import parallel_for

POSITIONS: Final = 4
"""Cached positions per iteration: their independent sums hide the latency of additions."""

_ZERO = np.float32(0)
_LOWEST = np.float32(-3.4e38)


# Shuffles of the horizontal reduction: even and odd lanes of two vectors, then pairs of lanes, then halves.
_even, _odd = shuffle(0, 8, 2, 10, 4, 12, 6, 14), shuffle(1, 9, 3, 11, 5, 13, 7, 15)
_first_pairs, _second_pairs = shuffle(0, 1, 8, 9, 4, 5, 12, 13), shuffle(2, 3, 10, 11, 6, 7, 14, 15)
_low, _high = shuffle(0, 1, 2, 3), shuffle(4, 5, 6, 7)


@inline
def _sums(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Horizontal reduction: the sums of four vectors of eight lanes, as a vector of four."""
    ab, cd = _even(a, b) + _odd(a, b), _even(c, d) + _odd(c, d)
    abcd = _first_pairs(ab, cd) + _second_pairs(ab, cd)
    return _low(abcd, abcd) + _high(abcd, abcd)


@inline
def _softmax(scores: Any, count: Any) -> Any:
    """Unnormalized softmax: scores[:count] = exp(scores - max). Returns their sum. Writes up to a vector past `count`."""
    for i in range(count, count + (-count) % LANES):
        scores[i] = _LOWEST
    top = splat(_LOWEST, LANES)
    for i in range(0, count, LANES):
        top = maximum(load(scores, i, LANES), top)
    shift = splat(max_lanes(top), LANES)
    total = splat(_ZERO, LANES)
    for i in range(0, count, LANES):
        e = exponential(load(scores, i, LANES) - shift)
        store(scores, i, e)
        total = total + e
    # A padding lane is exp of the clamp, about 1e-38: negligible beside the maximum's 1.
    return sum_lanes(total)


@inline
def _exponentiate(scores: Any, count: Any, own: Any, head: Any, softcap: Any, slopes: Any, sinks: Any) -> Any:
    """Softcap, ALiBi and unnormalized softmax of the scores of `count` positions, of which `own` is the query's.

    Returns the normalization factor, one over the sum. Writes up to a vector past the scores.
    """
    if softcap > _ZERO:
        for p in range(count):
            scores[p] = softcap * np.tanh(scores[p] / softcap)
    if slopes.shape[0]:
        for p in range(count):
            scores[p] -= slopes[head] * np.float32(abs(own - p))
    terms = count
    if sinks.shape[0]:  # the attention sink: one more position, without a value
        scores[count] = sinks[head]
        terms += 1
    return np.float32(1) / _softmax(scores, terms)


class AttentionKernels:
    """The attention kernels of a cache type. `attend` is compiled when it is first called."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.store = storage.store
        few, many = _attend_kernel(storage), attend_many_kernel(storage, _exponentiate)

        def attend(q: Floats, keys: NDArray[Any], *others: Any) -> None:
            # Fewer queries than a register tile are faster one by one than padded to a tile.
            queries = q.shape[0] * (q.shape[1] // keys.shape[0])
            (few if queries < COLUMNS else many)(q, keys, *others)

        self.attend = attend


@cache
def attention_kernels(cache_type: str) -> AttentionKernels:
    """The kernels of a type of `STORAGES`.

    Raises:
        ValueError: for another type.
    """
    if cache_type not in STORAGES:
        raise ValueError(f"no attention over a cache of type {cache_type!r}, expected one of {', '.join(STORAGES)}")
    return AttentionKernels(STORAGES[cache_type])


def _sums_over_positions(read: Any) -> tuple[Any, Any]:
    """The two `inline` products of attention for one query: with the keys, and with the values."""

    @inline_once
    def score(query: Any, keys: Any, start: Any, size: Any, count: Any, scores: Any) -> None:
        """scores[p] = query . keys of position p, for `count` positions of `size` numbers from element `start` on."""
        whole, stride = count - count % POSITIONS, keys.shape[2]
        for p in range(0, whole, POSITIONS):
            place = start + p * stride
            a = b = c = d = splat(_ZERO, STEP)
            for i in range(0, size, STEP):
                q = load(query, i, STEP)
                a = fma(q, read(keys, place, i), a)
                b = fma(q, read(keys, place + stride, i), b)
                c = fma(q, read(keys, place + 2 * stride, i), c)
                d = fma(q, read(keys, place + 3 * stride, i), d)
            store(scores, p, _sums(a, b, c, d))
        for p in range(whole, count):
            total = splat(_ZERO, STEP)
            for i in range(0, size, STEP):
                total = fma(load(query, i, STEP), read(keys, start + p * stride, i), total)
            scores[p] = sum_lanes(total)

    @inline_once
    def mix(scores: Any, values: Any, start: Any, count: Any, i: Any) -> Any:
        """The sum of scores[p] * values of position p, its numbers i to i + 7, for positions from element `start` on."""
        whole, stride = count - count % POSITIONS, values.shape[2]
        a = b = c = d = splat(_ZERO, STEP)
        for p in range(0, whole, POSITIONS):
            place = start + p * stride
            a = fma(splat(scores[np.uintp(p)], STEP), read(values, place, i), a)
            b = fma(splat(scores[np.uintp(p + 1)], STEP), read(values, place + stride, i), b)
            c = fma(splat(scores[np.uintp(p + 2)], STEP), read(values, place + 2 * stride, i), c)
            d = fma(splat(scores[np.uintp(p + 3)], STEP), read(values, place + 3 * stride, i), d)
        for p in range(whole, count):
            a = fma(splat(scores[np.uintp(p)], STEP), read(values, start + p * stride, i), a)
        return (a + b) + (c + d)

    return score, mix


def _attend_kernel(storage: Storage) -> Any:
    numbers = storage.numbers
    score, mix = _sums_over_positions(storage.read)

    @inline
    def one_head(
        task: Any, q: Any, keys: Any, values: Any, position: Any, scale: Any, softcap: Any, window: Any, chunk: Any,
        ahead: Any, slopes: Any, sinks: Any, out: Any,
    ) -> None:  # fmt: skip
        rows, key_size, padded = q.shape[0], q.shape[2], numbers(keys.shape[2])
        row, head = task % rows, task // rows
        own = position + row
        first, last = first_seen(own, window, chunk), min(own + ahead, position + rows - 1)
        query = np.empty(max(padded, (out.shape[2] + STEP - 1) // STEP * STEP), np.float32)
        scores = np.empty(position + rows + LANES, np.float32)
        kv_head = head // (q.shape[1] // keys.shape[0])
        for i in range(key_size):
            query[i] = q[row, head, i] * scale
        for i in range(key_size, padded):
            query[i] = _ZERO
        count = last + 1 - first
        score(query, keys, (kv_head * keys.shape[1] + first) * keys.shape[2], padded, count, scores)
        inverse_sum = _exponentiate(scores, count, own - first, head, softcap, slopes, sinks)
        size, start = out.shape[2], (kv_head * values.shape[1] + first) * values.shape[2]
        for i in range(0, size, STEP):
            store(query, i, mix(scores, values, start, count, i) * inverse_sum)
        for i in range(size):
            out[row, head, i] = query[i]

    @parallel_kernel
    def attend(
        pool: Any, q: Any, keys: Any, values: Any, position: Any, scale: Any, softcap: Any, window: Any, chunk: Any,
        ahead: Any, slopes: Any, sinks: Any, out: Any,
    ) -> None:  # fmt: skip
        """out[i, h] = softmax(scale * q[i, h] . keys[h', p]) . values[h', p] over the positions p <= position + i.

        q float32 (rows, heads, key_size), out float32 (rows, heads, value_size); keys, values (kv_heads, context,
        elements); head h reads h' = h * kv_heads // heads (GQA).

        softcap > 0   scores become softcap * tanh(score / softcap)
        window > 0    sliding window: a token attends to that many positions at most, itself included
        chunk > 0     a token attends only to positions from the last multiple of `chunk` on
        ahead > 0     a token also attends to that many later tokens of q, all of which have been stored
        slopes        float32 (heads,) or empty: ALiBi, subtracted from a score per position of distance
        sinks         float32 (heads,) or empty: attention sinks, scores of one more position without a value
        """
        arguments = (q, keys, values, position, scale, softcap, window, chunk, ahead, slopes, sinks, out)
        parallel_for(pool, q.shape[0] * q.shape[1], one_head, arguments)

    return attend
