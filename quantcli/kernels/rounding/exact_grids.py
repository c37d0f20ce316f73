"""Lossless packing of weights that already lie on the quantization grid of a block type.

Models trained with quantization for a type (QAT), or already quantized with scales it can hold, have blocks of 32 weights
that are all integer multiples of one float16 scale. For MXFP4 they are E2M1 values times a power of two. The quantizer
derives the scale from the weight of largest magnitude, so it misses the grid if no weight of the block has the extreme
level. Here the scale with an exact round trip is found, if there is one.

A BF16 or F16 checkpoint may hold such multiples rounded, since scale times level needs more mantissa bits than its dtype
has. Lossless then means that the dequantized weight, rounded to the checkpoint's dtype, equals the checkpoint's weight bit
for bit. Only the sign of zero is lost: training leaves zeros of both signs, a block has only one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES, BlockType
from quantcli.kernels.half import bfloat_to_float, float_to_bfloat, float_to_half, half_to_float
from quantcli.kernels.jit import inline, kernel

Floats = NDArray[np.float32]

_BLOCK: Final = 32
_HALVES: Final = _BLOCK // 2


class Grid(ABC):
    """The quantization grid of a block of 32 for one type."""

    def may_hold(self, x: Floats) -> bool:
        """A cheap necessary test on blocks `(blocks, 32)`: False if some block cannot have an exact scale."""
        return True

    @abstractmethod
    def scales(self, x: Floats, source: BlockType) -> Floats:
        """A lossless scale for each block `(blocks, 32)` of weights representable in `source`; NaN where there is none.

        The round trip is exact, or if no scale achieves that, exact after rounding to `source`.
        """

    @abstractmethod
    def pack(self, x: Floats, scales: Floats, out: NDArray[Any]) -> None:
        """Quantize blocks into `out` `(blocks,)`, a structured array of the type's layout, with the result of `scales`."""


class _Integers(Grid):
    """Integer levels from `low` to `high` times a float16 scale of either sign; -low is a power of two or equals high.

    Where the products may be rounded, blocks with a level too large to be told from its neighbours are rejected
    (`_TELLABLE`). In BF16 these are levels of 64 or more, where half of all BF16 values would lie on the grid. Below, at
    most one value of the type in four does, so ordinary weights never match in all 32 of a block.
    """

    def __init__(self, low: int, high: int, zero: int, pack: Callable[[NDArray[np.int16], NDArray[Any]], None]) -> None:
        self._low, self._high, self._zero = low, high, zero
        self._pack = pack

    def may_hold(self, x: Floats) -> bool:
        """See `Grid.may_hold`: no nonzero magnitude is much below the largest divided by the highest level."""
        magnitude = np.abs(x.T, order="C")  # transposed: reductions over a contiguous axis of 32 are slow
        largest = magnitude.max(0)
        magnitude[magnitude == 0] = np.inf
        with np.errstate(all="ignore"):
            return bool((largest <= magnitude.min(0) * np.float32(max(self._high, -self._low) + 0.5)).all())

    def scales(self, x: Floats, source: BlockType) -> Floats:
        """See `Grid.scales`."""
        found = np.empty(len(x), np.float32)
        _search(np.ascontiguousarray(x), self._low, self._high, _ROUNDINGS.get(source.name, _NONE), found)
        return found

    def pack(self, x: Floats, scales: Floats, out: NDArray[Any]) -> None:
        """See `Grid.pack`."""
        levels = np.rint(x / np.where(scales == 0, np.float32(1), scales)[:, None]).astype(np.int16)
        out["d"] = scales
        self._pack(levels + np.int16(self._zero), out)


_NONE, _BRAIN, _HALF = 0, 1, 2
"""The dtype that scale times level may have been rounded to: none, BF16 or F16."""

_ROUNDINGS: Final = MappingProxyType({"BF16": _BRAIN, "F16": _HALF})

_LARGEST: Final = 0x7F7FFFFF
"""The bits of the largest float32."""

_TELLABLE: Final = (1 << 22, 1 << 6, 1 << 9)
"""For each rounding, the first level that may be mistaken for its neighbour: half the count of values in a binade.

A weight and the smallest weight each have a rounding error of at most half an ulp. Below this level the error of their
quotient is less than one half.
"""


@inline
def _round(x: Any, rounding: Any) -> Any:
    if rounding == _BRAIN:
        return bfloat_to_float(float_to_bfloat(x))
    return half_to_float(float_to_half(x)) if rounding == _HALF else x


@inline
def _interval_end(x: Any, rounding: Any, step: Any) -> Any:
    """An end of the interval of values that round to a magnitude `x`: the upper for step 1, the lower for step -1.

    The end itself is a tie and may round elsewhere.
    """
    if rounding == _BRAIN:
        return (x + bfloat_to_float(np.uint16(float_to_bfloat(x) + step))) / np.float32(2)
    return (x + half_to_float(np.uint16(float_to_half(x) + step))) / np.float32(2)


@kernel
def _search(x: Any, low: Any, high: Any, rounding: Any, found: Any) -> None:
    """Write to `found`, for each block of `x` `(blocks, 32)`, the float16 scale of which its weights are multiples from
    `low` to `high`; NaN if there is none. If no scale is exact, products rounded as `rounding` says are accepted.

    The smallest nonzero weight has some level: 1, 2 ... are tried while the largest weight's level stays in range. Each
    trial fixes the level of every weight, and the levels bound the scale. The loops are written to vectorize: no early
    exit, and floats compared by their bits.
    """
    magnitude, levels, ends = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32), np.empty((2, _BLOCK), np.float32)
    bits = magnitude.view(np.int32)
    for block in range(len(x)):
        values = x[block]
        for i in range(_BLOCK):
            magnitude[i] = abs(values[i])
        top: Any = 0
        bottom: Any = _LARGEST
        for i in range(_BLOCK):
            top = max(top, bits[i])
            bottom = min(bottom, bits[i] if bits[i] > 0 else np.int32(_LARGEST))
        found[block] = np.float32(0) if top == 0 else np.float32(np.nan)
        if top == 0 or top > _LARGEST:
            continue
        ends.view(np.int32)[0, 0], ends.view(np.int32)[1, 0] = top, bottom
        largest, smallest = ends[0, 0], ends[1, 0]
        for way in range(0, rounding + 1, max(1, rounding)):
            most = np.float32(min(max(high, -low), _TELLABLE[way] - 1))
            multiple = np.float32(1)
            while found[block] != found[block] and largest * multiple <= smallest * (most + np.float32(0.5)):
                scale = _scale(magnitude, smallest / multiple, way, levels, ends)
                if scale > 0:
                    found[block] = scale * _sign(values, levels, low, high, most)
                multiple += np.float32(1)


@inline
def _scale(magnitude: Any, about: Any, way: Any, levels: Any, ends: Any) -> Any:
    """The scale of a block, given its approximate value `about`; NaN if there is none.

    It is the float16 nearest to the middle of the interval of scales that reproduce all weights. `levels` receives each
    weight's multiple of the scale.
    """
    turns = np.float32(1) / about
    least = bound = half_to_float(float_to_half(about))
    for i in range(_BLOCK):
        levels[i] = np.rint(magnitude[i] * turns)
    if way == _NONE:
        if least != about:
            return np.float32(np.nan)
    else:
        for i in range(_BLOCK):
            times = levels[i] if levels[i] > 0 else np.float32(1)
            below, above = _interval_end(magnitude[i], way, -1) / times, _interval_end(magnitude[i], way, 1) / times
            ends[0, i] = below if magnitude[i] > 0 else np.float32(0)
            ends[1, i] = above if magnitude[i] > 0 else np.float32(np.inf)
        bits = ends.view(np.int32)
        low, high = bits[0, 0], bits[1, 0]
        for i in range(_BLOCK):
            low, high = max(low, bits[0, i]), min(high, bits[1, i])
        bits[0, 0], bits[1, 0] = low, high
        least, bound = ends[0, 0], ends[1, 0]
        if least > bound:
            return np.float32(np.nan)
    # Between the bounds a scale is valid. At a bound it depends on how the tie rounds.
    for candidate in ((least + bound) / np.float32(2), least, bound):
        scale = half_to_float(float_to_half(candidate))
        wrong = 0 if np.float32(0) < scale < np.inf else 1
        for i in range(_BLOCK):
            wrong += _round(levels[i] * scale, way) != magnitude[i]
        if wrong == 0:
            return scale
    return np.float32(np.nan)


@inline
def _sign(values: Any, levels: Any, low: Any, high: Any, most: Any) -> Any:
    """The sign of the scale that puts the levels of all weights in `low..high`; NaN if neither sign does."""
    top: Any = 0
    bottom: Any = 0
    for i in range(_BLOCK):
        level = np.int32(levels[i]) if values[i] > 0 else -np.int32(levels[i])
        top, bottom = max(top, level), min(bottom, level)
    if max(top, -bottom) <= most:
        if top <= high and bottom >= low:
            return np.float32(1)
        if -bottom <= high and -top >= low:
            return np.float32(-1)
    return np.float32(np.nan)


def _pack_nibbles(levels: NDArray[np.int16], out: NDArray[Any]) -> None:
    low = levels.astype(np.uint8) & 15
    out["qs"] = low[:, :_HALVES] | (low[:, _HALVES:] << 4)


def _pack_five(levels: NDArray[np.int16], out: NDArray[Any]) -> None:
    _pack_nibbles(levels, out)
    out["qh"] = np.packbits(levels >> 4 & 1, axis=1, bitorder="little")


def _pack_bytes(levels: NDArray[np.int16], out: NDArray[Any]) -> None:
    out["qs"] = levels


_NO_LEVEL: Final = 5
"""An integer that is not a level of MXFP4."""


class _Microscale(Grid):
    """MXFP4: E2M1 levels times a power-of-two scale (E8M0).

    The smallest valid scale is taken: up to the largest weight, its grid contains the grid of every larger valid scale.
    """

    _CODES: Final = np.full(13, -1, np.int8)
    _CODES[[0, 1, 2, 3, 4, 6, 8, 12]] = range(8)
    _HIGHEST: Final = 254

    def scales(self, x: Floats, source: BlockType) -> Floats:
        """See `Grid.scales`. Neither BF16 nor F16 rounds the levels."""
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


ROUNDED: Final = tuple(_ROUNDINGS)
"""Names of the source types in which a grid is recognised even though its values are rounded."""

GRIDS: Final[Mapping[BlockType, Grid]] = MappingProxyType(
    {
        TYPES["Q4_0"]: _Integers(-8, 7, 8, _pack_nibbles),
        TYPES["Q5_0"]: _Integers(-16, 15, 16, _pack_five),
        TYPES["Q8_0"]: _Integers(-127, 127, 0, _pack_bytes),
        TYPES["MXFP4"]: _Microscale(),
    }
)
"""The types whose grids are recognised."""


def may_lie_on_grid(x: Floats, kind: BlockType) -> bool:
    """A cheap necessary test for `lies_on_grid`: False if some block of float32 rows `(rows, n)` cannot lie on the grid of
    `kind`, one of `GRIDS`. Ordinary weights fail it, so they need no kernel compilation."""
    return GRIDS[kind].may_hold(x.reshape(-1, _BLOCK))


def lies_on_grid(x: Floats, kind: BlockType, source: BlockType) -> bool:
    """Whether all blocks of float32 rows `(rows, n)`, with values representable in `source`, lie on the grid of `kind`, one
    of `GRIDS`, or on that grid rounded to `source`."""
    return not np.isnan(GRIDS[kind].scales(x.reshape(-1, _BLOCK), source)).any()


def repack(x: Floats, kind: BlockType, source: BlockType, inexact: NDArray[np.bool_], out: NDArray[np.uint8]) -> None:
    """Pack losslessly the blocks of float32 rows `(rows, n)` that the mask `inexact` `(blocks,)` selects.

    They are written in place to `out`, uint8 `(rows, bytes_per_row)`. Dequantized, they equal the weights exactly or after
    rounding to `source`.

    Raises:
        ValueError: if one of them does not lie on the grid.
    """
    values = x.reshape(-1, _BLOCK)[inexact]
    scales = GRIDS[kind].scales(values, source)
    if np.isnan(scales).any():
        raise ValueError(f"weights that do not lie on a grid of {kind.name}")
    blocks = np.empty(len(values), kind.layout)
    GRIDS[kind].pack(values, scales, blocks)
    out.reshape(-1).view(kind.layout)[inexact] = blocks
