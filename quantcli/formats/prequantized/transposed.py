"""Transposes of stored matrices, packed or not, as rows of numbers.

A column is scattered over the file, and several codes may be packed in each word of it. So a block of many columns is read
and unpacked at once and cached for the next chunks of rows. All tensors of a checkpoint share the cache.
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
from quantcli.tensors.column_blocks import column_blocks
from quantcli.tensors.tensor import Tensor

BLOCK_BYTES: Final = 1 << 22
"""Approximate size of an unpacked block of columns."""

CACHE_BYTES: Final = 1 << 25
"""Size limit of the cache."""


def block_cache() -> ArrayCache:
    """An empty cache for the blocks of columns of a checkpoint."""
    return ArrayCache(CACHE_BYTES)


Unpack = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class TransposedNumbers(Numbers):
    """The transpose of `source`, unpacked: rows of `length` numbers.

    `unpack` maps stored columns, `(source rows, columns)`, to rows, `(rows, length)`: `packed_rows` rows for each
    `packed_columns` columns. Its result is cached. `table` dequantizes codes; None for numbers that are not codes.
    """

    source: Tensor
    length: int
    unpack: Unpack = field(repr=False, compare=False)
    cache: ArrayCache = field(repr=False, compare=False)
    table: Floats | None = field(default=None, repr=False, compare=False)
    packed_rows: int = 1
    packed_columns: int = 1

    def rows(self, start: int, stop: int) -> Floats:
        """See `Numbers.rows`."""
        item = 4 if self.table is None else 1
        units = max(1, BLOCK_BYTES // (item * max(1, self.length) * self.packed_rows))
        height = units * self.packed_rows
        parts: list[NDArray[Any]] = [np.empty((0, self.length), np.uint8)] if start == stop else []
        for index in range(start // height, -(-stop // height)):
            first = index * units * self.packed_columns
            last = min(first + units * self.packed_columns, self.source.row_length)
            block = self.cache.get((self.source.name, index), partial(self._load, first, last))
            above = index * height
            parts.append(block[max(start, above) - above : min(stop, above + height) - above])
        codes = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return codes.astype(np.float32) if self.table is None else np.take(self.table, codes)

    def _load(self, first: int, last: int) -> NDArray[Any]:
        source = as_bits(self.source)
        columns = np.empty((source.rows, last - first), source.type.layout)
        for rows, block in column_blocks(source, 0, source.rows, first, last):
            columns[rows] = block
        return self.unpack(columns)


def transposed_floats(source: Tensor, cache: ArrayCache) -> TransposedNumbers:
    """The transpose of a tensor of plain numbers."""
    return TransposedNumbers(source, source.rows, partial(_transpose, source.type), cache)


def _transpose(type_: BlockType, columns: NDArray[Any]) -> Floats:
    return to_floats(np.ascontiguousarray(columns.T), type_)


def packed_along_columns(source: Tensor, bits: int, length: int, table: Floats, cache: ArrayCache) -> TransposedNumbers:
    """The transpose of codes packed along the columns of `source`: each column is a row of `length` codes."""
    return TransposedNumbers(source, length, partial(_unpack_columns, bits, length), cache, table)


def _unpack_columns(bits: int, length: int, columns: NDArray[Any]) -> NDArray[Any]:
    return unpack(columns.T, bits, length)


def packed_along_rows(
    source: Tensor, bits: int, table: Floats, cache: ArrayCache, order: tuple[int, ...] | None = None
) -> TransposedNumbers:
    """The transpose of codes packed along the rows of `source`: each word has codes of several rows of the result.

    Where the codes of a word are permuted, `order` has the position in the word of the first code, the second ...
    """
    # A code may straddle two words. Blocks begin only where a code begins a word.
    word = 8 * source.type.block_bytes
    packed_columns = bits if word % bits else 1
    packed_rows = packed_columns * word // bits
    unpack_ = partial(_unpack_rows, bits, word, order)
    return TransposedNumbers(source, source.rows, unpack_, cache, table, packed_rows, packed_columns)


def _unpack_rows(bits: int, word: int, order: tuple[int, ...] | None, columns: NDArray[Any]) -> NDArray[Any]:
    codes = unpack(columns, bits, columns.shape[1] * word // bits)
    if order is not None:
        codes = codes.reshape(len(codes), -1, len(order))[:, :, list(order)].reshape(codes.shape)
    return np.ascontiguousarray(codes.T)
