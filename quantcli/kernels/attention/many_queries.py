"""Attention for many queries on the same keys: a prompt's tokens (prefill), and query heads that share a KV head (GQA).

Both sums are GEMMs, computed like those of weights with register tiles of `COLUMNS` queries (see `products.many_columns`).
Keys are transposed so that positions are lanes; values are used as stored. A task is `_TASK` queries with their scores.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from quantcli.kernels.attention.cache_types import STEP, Storage
from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.products.many_columns import COLUMNS, ROWS, add_outer, read_grid, write_grid, zero_grid
from quantcli.kernels.simd import local, store, transpose_tile
from quantcli.kernels.threads import parallel_kernel
from quantcli.kernels.threads.loops import parallel_for

_TASK: Final = 32
"""Queries per tile of keys or values: enough to amortize the transpose of the tile."""

_STRETCH: Final = 128
"""Numbers of keys, or positions of values, in a tile."""

_TILE: Final = _STRETCH * ROWS
_SQUARE: Final = STEP * STEP
_SQUARE_STARTS: Final = STEP * np.arange(STEP)
_ZERO = np.float32(0)


def _products(read: Any) -> tuple[Any, Any]:
    """The two `inline` matrix products of attention: queries with keys, and attention weights with values."""

    @inline_once
    def transpose_keys(keys: Any, start: Any, last: Any, first: Any, width: Any, tile: Any) -> None:
        """Transposed keys: tile[i * ROWS + p] = number `first` + i of the key at position min(p, last)."""
        square = local(_SQUARE, np.float32)
        for side in range(0, ROWS, STEP):
            for i in range(0, width, STEP):
                for p in range(STEP):
                    place = start + min(side + p, last) * keys.shape[2]
                    store(square, p * STEP, read(keys, place, first + i))
                transpose_tile(square, _SQUARE_STARTS, 0, 0, tile, i * ROWS + side, ROWS, STEP)

    @inline
    def read_values(values: Any, start: Any, first: Any, width: Any, count: Any, tile: Any) -> None:
        """tile[p * ROWS + i] = number `first` + i, of `width`, of the value at position p, for `count` positions."""
        for p in range(count):
            for i in range(0, width, STEP):
                store(tile, p * ROWS + i, read(values, start + p * values.shape[2], first + i))

    @inline_once
    def score(queries: Any, columns: Any, keys: Any, start: Any, size: Any, count: Any, scores: Any, stride: Any) -> None:
        """scores[c * stride + p] = query c . key p, for `count` positions from `start` on, padded with unused ones."""
        tile = local(_TILE, np.float32)
        for p in range(0, count, ROWS):
            for first in range(0, size, _STRETCH):
                width = min(_STRETCH, size - first)
                transpose_keys(keys, start + p * keys.shape[2], count - 1 - p, first, width, tile)
                for c in range(0, columns, COLUMNS):
                    total = read_grid(scores, c * stride + p, stride) if first else zero_grid()
                    for i in range(width):
                        total = add_outer(total, tile, i * ROWS, queries, c * size + first + i, size)
                    write_grid(total, scores, c * stride + p, stride)

    @inline_once
    def mix(
        scores: Any, stride: Any, columns: Any, values: Any, start: Any, size: Any, count: Any, first: Any, mixed: Any
    ) -> None:
        """mixed[c * ROWS + i] = the sum of scores[c * stride + p] * number `first` + i of value p, to position `count`."""
        tile = local(_TILE, np.float32)
        width = min(ROWS, size - first)
        for p in range(0, count, _STRETCH):
            some = min(_STRETCH, count - p)
            read_values(values, start + p * values.shape[2], first, width, some, tile)
            for c in range(0, columns, COLUMNS):
                total = read_grid(mixed, c * ROWS, ROWS) if p else zero_grid()
                for i in range(some):
                    total = add_outer(total, tile, i * ROWS, scores, c * stride + p + i, stride)
                write_grid(total, mixed, c * ROWS, ROWS)

    return score, mix


def attend_many_kernel(storage: Storage, exponentiate: Any) -> Any:
    """The kernel `attend` of `attention_kernels` for many queries, over a cache of one type. `exponentiate`
    applies the unnormalized softmax to a query's scores and returns one over their sum."""
    (score, mix), numbers = _products(storage.read), storage.numbers

    @inline
    def some_queries(
        number: Any, q: Any, keys: Any, values: Any, position: Any, scale: Any, softcap: Any,
        window: Any, chunk: Any, ahead: Any, slopes: Any, sinks: Any, out: Any,
    ) -> None:  # fmt: skip
        """Up to `_TASK` queries that attend to one head of the keys, ordered by token."""
        tasks = (q.shape[0] * (q.shape[1] // keys.shape[0]) + _TASK - 1) // _TASK
        begin, kv_head = number % tasks * _TASK, number // tasks
        count = min(_TASK, q.shape[0] * (q.shape[1] // keys.shape[0]) - begin)
        group, key_size, value_size = q.shape[1] // keys.shape[0], numbers(keys.shape[2]), numbers(values.shape[2])
        final = position + q.shape[0] - 1
        columns = count + (-count) % COLUMNS
        # The union of their masks: from the first query's first visible position to the last query's last one.
        base = first_seen(position + begin // group, window, chunk)
        seen = min(position + (begin + count - 1) // group + ahead, final) + 1 - base
        stride = seen + (-seen) % ROWS + ROWS
        queries, scores = np.zeros((columns, key_size), np.float32), np.empty((columns, stride), np.float32)
        inverse_sums, mixed = np.empty(columns, np.float32), np.empty((columns, ROWS), np.float32)
        for c in range(count):
            for i in range(q.shape[2]):
                queries[c, i] = q[(begin + c) // group, kv_head * group + (begin + c) % group, i] * scale
        start, flat = kv_head * keys.shape[1] + base, scores.reshape(-1)
        score(queries.reshape(-1), columns, keys, start * keys.shape[2], key_size, seen, flat, stride)
        scores[count:] = _ZERO
        for c in range(count):
            place, head = position + (begin + c) // group, kv_head * group + (begin + c) % group
            skipped = first_seen(place, window, chunk) - base
            end = min(place + ahead, final) + 1 - base
            own = place - base - skipped
            inverse_sums[c] = exponentiate(scores[c, skipped:], end - skipped, own, head, softcap, slopes, sinks)
            scores[c, :skipped] = _ZERO
            scores[c, end:] = _ZERO
        for first in range(0, out.shape[2], ROWS):
            mix(flat, stride, columns, values, start * values.shape[2], value_size, seen, first, mixed.reshape(-1))
            for c in range(count):
                row, head = (begin + c) // group, kv_head * group + (begin + c) % group
                for i in range(min(ROWS, out.shape[2] - first)):
                    out[row, head, first + i] = mixed[c, i] * inverse_sums[c]

    @parallel_kernel
    def attend_many(
        pool: Any, q: Any, keys: Any, values: Any, position: Any, scale: Any, softcap: Any, window: Any, chunk: Any,
        ahead: Any, slopes: Any, sinks: Any, out: Any,
    ) -> None:  # fmt: skip
        kv_heads = keys.shape[0]
        queries = q.shape[0] * (q.shape[1] // kv_heads)
        tasks = (queries + _TASK - 1) // _TASK
        arguments = (q, keys, values, position, scale, softcap, window, chunk, ahead, slopes, sinks, out)
        parallel_for(pool, kv_heads * tasks, some_queries, arguments)

    return attend_many


@inline
def first_seen(place: Any, window: Any, chunk: Any) -> Any:
    """The first position visible to the token at `place`, with a sliding `window` or attention in chunks."""
    first = 0
    if window > 0:
        first = max(0, place + 1 - window)
    if chunk > 0:
        first = max(first, place // chunk * chunk)
    return first
