"""Rows of numbers that are stored as columns.

A column is far apart in its file, and a stored column may hold several rows packed into its words. So a strip of many
columns is read and unpacked at once and kept for the next chunks of rows; the few strips kept are shared by all tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType
from quantcli.formats.prequantized.numbers import Floats, Numbers, as_bits, to_floats, unpack
from quantcli.tensors.array_cache import ArrayCache
from quantcli.tensors.columns import column_blocks
from quantcli.tensors.tensor import Tensor

STRIP_BYTES: Final = 1 << 22
"""About how large a strip is, as it is kept."""

KEPT_BYTES: Final = 1 << 25
"""How much is kept in all."""


def strip_cache() -> ArrayCache:
    """An empty cache for the strips of a checkpoint."""
    return ArrayCache(KEPT_BYTES)


Unpack = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Turned(Numbers):
    """The columns of `source` as rows of `length` numbers.

    `unpack` makes of some stored columns, `(source rows, columns)`, the rows they hold, `(rows, length)`: `rows_held` rows
    of each `columns_held` columns. What it gives is kept; `table` says what those levels stand for, None for numbers that
    stand for themselves.
    """

    source: Tensor
    length: int
    unpack: Unpack = field(repr=False, compare=False)
    cache: ArrayCache = field(repr=False, compare=False)
    table: Floats | None = field(default=None, repr=False, compare=False)
    rows_held: int = 1
    columns_held: int = 1

    def rows(self, start: int, stop: int) -> Floats:
        """See `Numbers.rows`."""
        item = 4 if self.table is None else 1
        units = max(1, STRIP_BYTES // (item * max(1, self.length) * self.rows_held))
        height = units * self.rows_held
        parts: list[NDArray[Any]] = [np.empty((0, self.length), np.uint8)] if start == stop else []
        for index in range(start // height, -(-stop // height)):
            first = index * units * self.columns_held
            last = min(first + units * self.columns_held, self.source.row_length)
            strip = self.cache.get((self.source.name, index), partial(self._strip, first, last))
            above = index * height
            parts.append(strip[max(start, above) - above : min(stop, above + height) - above])
        levels = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return levels.astype(np.float32) if self.table is None else np.take(self.table, levels)

    def _strip(self, first: int, last: int) -> NDArray[Any]:
        source = as_bits(self.source)
        columns = np.empty((source.rows, last - first), source.type.layout)
        for rows, block in column_blocks(source, 0, source.rows, first, last):
            columns[rows] = block
        return self.unpack(columns)


def turned_floats(source: Tensor, cache: ArrayCache) -> Turned:
    """The columns of a tensor of plain numbers as rows."""
    return Turned(source, source.rows, partial(_floats_of_columns, source.type), cache)


def _floats_of_columns(type_: BlockType, columns: NDArray[Any]) -> Floats:
    return to_floats(np.ascontiguousarray(columns.T), type_)


def packed_down(source: Tensor, bits: int, length: int, table: Floats, cache: ArrayCache) -> Turned:
    """Levels packed along the columns of `source`: each column holds one row of `length` levels."""
    return Turned(source, length, partial(_levels_down, bits, length), cache, table)


def _levels_down(bits: int, length: int, columns: NDArray[Any]) -> NDArray[Any]:
    return unpack(columns.T, bits, length)


def packed_across(
    source: Tensor, bits: int, table: Floats, cache: ArrayCache, order: tuple[int, ...] | None = None
) -> Turned:
    """Levels packed along the rows of `source`, of which each level belongs to a row of the result. `order` names, of the
    levels of a word, the place of the first, the second ... where they are not in their order."""
    # A level may straddle two words: where the pattern begins again is where strips may begin.
    word = 8 * source.type.block_bytes
    columns_held = bits if word % bits else 1
    rows_held = columns_held * word // bits
    return Turned(source, source.rows, partial(_levels_across, bits, word, order), cache, table, rows_held, columns_held)


def _levels_across(bits: int, word: int, order: tuple[int, ...] | None, columns: NDArray[Any]) -> NDArray[Any]:
    levels = unpack(columns, bits, columns.shape[1] * word // bits)
    if order is not None:
        levels = levels.reshape(len(levels), -1, len(order))[:, :, list(order)].reshape(levels.shape)
    return np.ascontiguousarray(levels.T)
