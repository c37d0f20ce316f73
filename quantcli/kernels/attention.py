"""Attention of a few new tokens over all cached ones, on a key-value cache of half or single precision.

The cache of a layer is two arrays `(kv_heads, context, head_size)`, so that one head's past is one stretch of memory.
`head_size` is a multiple of 8 there (`padded_head_size`): a model's odd head is padded with zeros, which change no sum.
Keys and values may be of different sizes, and one array may be both: values are then the first numbers of the keys.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numba import prange

from quantcli.kernels.elementwise import exponential
from quantcli.kernels.half import float_to_half, half_to_float
from quantcli.kernels.jit import inline, parallel_kernel
from quantcli.kernels.simd import LANES, fma, load, max_lanes, maximum, shuffle, splat, store, sum_lanes

STEP: Final = 8
"""Numbers of a head handled together."""

POSITIONS: Final = 4
"""Cached positions handled together: their sums do not wait for one another."""

_ZERO = np.float32(0)
_LOWEST = np.float32(-3.4e38)


def padded_head_size(head_size: int) -> int:
    """The head size as cached: the next multiple of `STEP`."""
    return -(-head_size // STEP) * STEP


# Pairs of lanes of two vectors side by side: the even ones, the odd ones; then pairs of those; then halves.
_even, _odd = shuffle(0, 8, 2, 10, 4, 12, 6, 14), shuffle(1, 9, 3, 11, 5, 13, 7, 15)
_first_pairs, _second_pairs = shuffle(0, 1, 8, 9, 4, 5, 12, 13), shuffle(2, 3, 10, 11, 6, 7, 14, 15)
_low, _high = shuffle(0, 1, 2, 3), shuffle(4, 5, 6, 7)


@inline
def _sums(a: Any, b: Any, c: Any, d: Any) -> Any:
    """The sums of the lanes of four vectors of eight, as a vector of four."""
    ab, cd = _even(a, b) + _odd(a, b), _even(c, d) + _odd(c, d)
    abcd = _first_pairs(ab, cd) + _second_pairs(ab, cd)
    return _low(abcd, abcd) + _high(abcd, abcd)


@inline
def _same(x: Any) -> Any:
    return x


@inline
def _softmax(scores: Any, count: Any) -> Any:
    """scores[:count] = exp(scores - max), not normalized; returns their sum. Writes up to a vector past `count`."""
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
    # A lane past the end is exp of the clamp, about 1e-38: nothing beside the maximum's 1.
    return sum_lanes(total)


class AttentionKernels:
    """The two kernels of a cache precision, compiled when first called."""

    def __init__(self, narrow: Any, widen: Any) -> None:
        self.store = _store_kernel(narrow)
        self.attend = _attend_kernel(widen)


@cache
def attention_kernels(dtype: np.dtype[Any]) -> AttentionKernels:
    """Kernels for caches of `dtype`: float32, or uint16 that holds halves.

    Raises:
        ValueError: for another dtype.
    """
    if dtype == np.float32:
        return AttentionKernels(_same, _same)
    if dtype == np.uint16:
        return AttentionKernels(float_to_half, half_to_float)
    raise ValueError(f"no attention over a cache of {dtype}")


def _store_kernel(narrow: Any) -> Any:
    @parallel_kernel
    def store_rows(x: Any, cached: Any, position: Any) -> None:
        """cached[:, position + i, :head_size] = x[i]; x float32 (rows, kv_heads, head_size)."""
        rows, heads, size = x.shape
        if rows == 1:
            for head in range(heads):
                for i in range(size):
                    cached[head, position, i] = narrow(x[0, head, i])
        else:
            for row in prange(rows):
                for head in range(heads):
                    for i in range(size):
                        cached[head, position + row, i] = narrow(x[row, head, i])

    return store_rows


def _sums_over_positions(widen: Any) -> tuple[Any, Any]:
    """The two `inline` sums of attention: over the numbers of keys, and over the values of positions."""

    @inline
    def score(query: Any, keys: Any, start: Any, size: Any, count: Any, scores: Any) -> None:
        """scores[p] = query . keys of position p, for `count` positions of `size` numbers from `start` on."""
        whole = count - count % POSITIONS
        for p in range(0, whole, POSITIONS):
            place = start + p * size
            a = b = c = d = splat(_ZERO, STEP)
            for i in range(0, size, STEP):
                q = load(query, i, STEP)
                a = fma(q, widen(load(keys, place + i, STEP)), a)
                b = fma(q, widen(load(keys, place + size + i, STEP)), b)
                c = fma(q, widen(load(keys, place + 2 * size + i, STEP)), c)
                d = fma(q, widen(load(keys, place + 3 * size + i, STEP)), d)
            store(scores, p, _sums(a, b, c, d))
        for p in range(whole, count):
            total = splat(_ZERO, STEP)
            for i in range(0, size, STEP):
                total = fma(load(query, i, STEP), widen(load(keys, start + p * size + i, STEP)), total)
            scores[p] = sum_lanes(total)

    @inline
    def mix(scores: Any, values: Any, start: Any, size: Any, count: Any, i: Any) -> Any:
        """The sum of scores[p] * values of position p, its numbers i to i + 7."""
        whole = count - count % POSITIONS
        a = b = c = d = splat(_ZERO, STEP)
        for p in range(0, whole, POSITIONS):
            place = start + p * size + i
            a = fma(splat(scores[np.uintp(p)], STEP), widen(load(values, place, STEP)), a)
            b = fma(splat(scores[np.uintp(p + 1)], STEP), widen(load(values, place + size, STEP)), b)
            c = fma(splat(scores[np.uintp(p + 2)], STEP), widen(load(values, place + 2 * size, STEP)), c)
            d = fma(splat(scores[np.uintp(p + 3)], STEP), widen(load(values, place + 3 * size, STEP)), d)
        for p in range(whole, count):
            a = fma(splat(scores[np.uintp(p)], STEP), widen(load(values, start + p * size + i, STEP)), a)
        return (a + b) + (c + d)

    return score, mix


def _attend_kernel(widen: Any) -> Any:
    score, mix = _sums_over_positions(widen)

    @inline
    def one_head(
        q: Any, keys: Any, values: Any, position: Any, scale: Any, softcap: Any, first: Any, slopes: Any, sinks: Any,
        out: Any, row: Any, head: Any, query: Any, scores: Any,
    ) -> None:  # fmt: skip
        key_size, padded = q.shape[2], keys.shape[2]
        kv_head = head // (q.shape[1] // keys.shape[0])
        for i in range(key_size):
            query[i] = q[row, head, i] * scale
        for i in range(key_size, padded):
            query[i] = _ZERO
        last = position + row
        count = last + 1 - first
        score(query, keys, (kv_head * keys.shape[1] + first) * padded, padded, count, scores)
        if softcap > _ZERO:
            for p in range(count):
                scores[p] = softcap * np.tanh(scores[p] / softcap)
        if slopes.shape[0]:
            for p in range(count):
                scores[p] -= slopes[head] * np.float32(last - first - p)
        weighed = count
        if sinks.shape[0]:  # a position more, which has no value
            scores[count] = sinks[head]
            weighed += 1
        share = np.float32(1) / _softmax(scores, weighed)
        size, padded = out.shape[2], values.shape[2]
        start = (kv_head * values.shape[1] + first) * padded
        for i in range(0, size, STEP):
            store(query, i, mix(scores, values, start, padded, count, i) * share)
        for i in range(size):
            out[row, head, i] = query[i]

    @parallel_kernel
    def attend(
        q: Any, keys: Any, values: Any, position: Any, scale: Any, softcap: Any, window: Any, chunk: Any, slopes: Any,
        sinks: Any, out: Any,
    ) -> None:  # fmt: skip
        """out[i, h] = softmax(scale * q[i, h] . keys[h', p]) . values[h', p] over the positions p <= position + i.

        q float32 (rows, heads, key_size), out float32 (rows, heads, value_size); keys, values (kv_heads, context,
        padded_head_size of theirs); head h reads h' = h * kv_heads // heads. `softcap` > 0 bounds scores to
        softcap * tanh(score / softcap). `window` > 0 lets a token see only that many positions, itself included, and
        `chunk` > 0 only those since its last multiple. slopes and sinks are float32 (heads,), or empty: `slopes` take from
        a score that much per position between (ALiBi), `sinks` are scores of one more position that has no value.
        """
        rows, heads = q.shape[0], q.shape[1]
        room = max(keys.shape[2], (out.shape[2] + STEP - 1) // STEP * STEP)
        for task in prange(rows * heads):
            row = task % rows
            first = 0
            if window > 0:
                first = max(0, position + row + 1 - window)
            if chunk > 0:
                first = max(first, (position + row) // chunk * chunk)
            query = np.empty(room, np.float32)
            scores = np.empty(position + rows + LANES, np.float32)
            one_head(
                q, keys, values, position, scale, softcap, first, slopes, sinks, out, row, task // rows, query, scores
            )  # fmt: skip

    return attend
