"""Weights that lie on the grid of a block type already: found, and packed without loss.

Models trained for a type, or quantized before with scales it can hold, have in every block of 32 weights nothing but
multiples of some half-precision number (or for MXFP4 the levels under a power of two). The quantizer takes the scale from
the extreme weight and misses such a grid where the block lacks the extreme level. Here the scale is found that gives
every weight back exactly, if there is one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.types import TYPES, BlockType

Floats = NDArray[np.float32]

_BLOCK: Final = 32
_HALVES: Final = _BLOCK // 2


class Grid(ABC):
    """The numbers a block of 32 can hold, each type's in its own way."""

    @abstractmethod
    def scales(self, x: Floats) -> Floats:
        """For each block `(blocks, 32)` a scale under which it is exact, NaN where there is none."""

    @abstractmethod
    def pack(self, x: Floats, scales: Floats, out: NDArray[Any]) -> None:
        """Write blocks that are exact under `scales` to `out` `(blocks,)`, of the type's layout."""


class _Integers(Grid):
    """Multiples from `low` to `high` of a half-precision number of either sign; -low is a power of two or high."""

    def __init__(self, low: int, high: int, zero: int, pack: Callable[[NDArray[np.int16], NDArray[Any]], None]) -> None:
        self._low, self._high, self._zero = low, high, zero
        self._pack = pack

    def scales(self, x: Floats) -> Floats:
        """See `Grid.scales`. The smallest weight is some multiple of the scale: the first, the second ... are tried, as
        long as the largest stays in range."""
        most = max(self._high, -self._low)
        # Element by element, all blocks at a time: sums over 32 neighbours are slow.
        left, magnitude = np.arange(len(x)), np.abs(x.T, order="C")
        largest = magnitude.max(0)
        magnitude[magnitude == 0] = np.inf
        smallest = magnitude.min(0)
        found = np.where(largest == 0, np.float32(0), np.float32(np.nan))
        values = np.ascontiguousarray(x.T)
        with np.errstate(all="ignore"):
            for multiple in map(np.float32, range(1, most + 1)):
                scale = (smallest / multiple).astype(np.float16).astype(np.float32)
                level = np.rint(values / scale)
                exact = (level * scale == values).all(0) & (scale * multiple == smallest) & (largest > 0)
                high, low = level.max(0), level.min(0)
                upright = exact & (high <= self._high) & (low >= self._low)
                turned = exact & ~upright & (-low <= self._high) & (-high >= self._low)
                found[left[upright]] = scale[upright]
                found[left[turned]] = -scale[turned]
                again = (largest > 0) & ~upright & ~turned & (largest * (multiple + 1) <= smallest * np.float32(most))
                if not again.any():
                    break
                left, largest, smallest, values = left[again], largest[again], smallest[again], values[:, again]
        return found

    def pack(self, x: Floats, scales: Floats, out: NDArray[Any]) -> None:
        """See `Grid.pack`."""
        levels = np.rint(x / np.where(scales == 0, np.float32(1), scales)[:, None]).astype(np.int16)
        out["d"] = scales
        self._pack(levels + np.int16(self._zero), out)


def _pack_nibbles(levels: NDArray[np.int16], out: NDArray[Any]) -> None:
    low = levels.astype(np.uint8) & 15
    out["qs"] = low[:, :_HALVES] | (low[:, _HALVES:] << 4)


def _pack_five(levels: NDArray[np.int16], out: NDArray[Any]) -> None:
    _pack_nibbles(levels, out)
    out["qh"] = np.packbits(levels >> 4 & 1, axis=1, bitorder="little")


def _pack_bytes(levels: NDArray[np.int16], out: NDArray[Any]) -> None:
    out["qs"] = levels


_NO_LEVEL: Final = 5
"""An integer that is none of MXFP4's levels."""


class _Microscale(Grid):
    """The levels of MXFP4 under a power of two. Of the scales that would do the smallest is taken: the levels of a larger
    one are among its levels, as far as the largest weight reaches."""

    _CODES: Final = np.full(13, -1, np.int8)
    _CODES[[0, 1, 2, 3, 4, 6, 8, 12]] = range(8)
    _HIGHEST: Final = 254

    def scales(self, x: Floats) -> Floats:
        """See `Grid.scales`."""
        fraction, exponent = np.frexp(np.abs(x).max(1))
        # The largest weight is 8 or 12 times the scale, unless that would be smaller than the smallest.
        exponent = np.maximum(exponent - 4, -128)
        usable = np.isin(fraction, (0, 0.5, 0.75)) & (exponent <= self._HIGHEST - 128)
        with np.errstate(all="ignore"):
            level = np.ldexp(np.abs(x), -exponent[:, None])
            exact = (level <= 12) & (level == np.rint(level)) & (np.ldexp(level, exponent[:, None]) == np.abs(x))
            codes = self._CODES[np.where(exact, level, _NO_LEVEL).astype(np.int8)]
            scales = np.ldexp(np.float32(1), exponent)
        return np.where(usable & (codes >= 0).all(1), scales, np.float32(np.nan)).astype(np.float32)

    def pack(self, x: Floats, scales: Floats, out: NDArray[Any]) -> None:
        """See `Grid.pack`."""
        _, exponent = np.frexp(scales)
        codes = self._CODES[np.ldexp(np.abs(x), 1 - exponent[:, None]).astype(np.int8)].astype(np.uint8)
        codes |= np.where(x < 0, np.uint8(8), np.uint8(0))
        out["e"] = exponent - 1 + 128
        out["qs"] = codes[:, :_HALVES] | (codes[:, _HALVES:] << 4)


GRIDS: Final[Mapping[BlockType, Grid]] = MappingProxyType(
    {
        TYPES["Q4_0"]: _Integers(-8, 7, 8, _pack_nibbles),
        TYPES["Q5_0"]: _Integers(-16, 15, 16, _pack_five),
        TYPES["Q8_0"]: _Integers(-127, 127, 0, _pack_bytes),
        TYPES["MXFP4"]: _Microscale(),
    }
)
"""The types whose grids are recognised."""


def lies_on_grid(x: Floats, kind: BlockType) -> bool:
    """Whether all blocks of float32 rows `(rows, n)` lie on the grid of `kind`, one of `GRIDS`."""
    return not np.isnan(GRIDS[kind].scales(x.reshape(-1, _BLOCK))).any()


def repack(x: Floats, kind: BlockType, inexact: NDArray[np.bool_], out: NDArray[np.uint8]) -> None:
    """Write anew, without loss, those blocks of float32 rows `(rows, n)` that `inexact` `(blocks,)` marks, into their
    places in `out`, uint8 `(rows, bytes per row)`.

    Raises:
        ValueError: if one of them does not lie on the grid.
    """
    values = x.reshape(-1, _BLOCK)[inexact]
    scales = GRIDS[kind].scales(values)
    if np.isnan(scales).any():
        raise ValueError(f"weights that do not lie on a grid of {kind.name}")
    blocks = np.empty(len(values), kind.layout)
    GRIDS[kind].pack(values, scales, blocks)
    out.reshape(-1).view(kind.layout)[inexact] = blocks
