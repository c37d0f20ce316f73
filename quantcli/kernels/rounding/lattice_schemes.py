"""How each lattice type (IQ1, IQ2, IQ3) is rounded with error feedback, and how its blocks are packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import SUPER_BLOCK
from quantcli.kernels.blocks.codebooks import LATTICES, codebook
from quantcli.kernels.blocks.lattice_packing import PACK
from quantcli.kernels.blocks.lattice_ternary import QH_1M, QH_1S, QS_1M, QS_1S, SCALES_1M, SHIFT
from quantcli.kernels.jit import inline
from quantcli.kernels.simd import LANES, store_scalar

OCTET: Final = 8
"""Weights that share signs, or a shift."""


@dataclass(frozen=True)
class LatticeScheme:
    """The parameters of a lattice type.

    name          of the type
    group         weights that share a quantized scale
    top           the highest quantized scale; scale = d * unit * (2 * quantized + 1)
    even_signs    whether the number of minus signs in an octet is even
    shifts        0 for points of magnitudes, which have signs. Else points have signs themselves, and are shifted up or
                  down: 1 where a whole group has the same shift, 2 where each octet has its own
    pack          an `inline` function (scales, lane, d, indices, signs, packed, at) that packs a block. scales int32, the
                  quantized ones, transposed: lane `lane` is taken; d float16 bits; indices int32, of the points; signs
                  int32: the minus signs of each octet as bits, or -1 where it is shifted down
    """

    name: str
    group: int
    top: int
    unit: float
    even_signs: bool
    shifts: int
    pack: Callable[..., None]

    @property
    def values(self) -> tuple[int, ...]:
        """The values of the levels."""
        return LATTICES[self.name].values

    @property
    def dimensions(self) -> int:
        """The weights of a point."""
        return LATTICES[self.name].dimensions


@dataclass(frozen=True, eq=False)
class HalvedPoints:
    """The points of a codebook, sorted by their first halves. A half stands for the levels of half of the dimensions: those
    are the digits of its number, lowest first.

    digits   int32 (halves, dimensions / 2): the levels of each half
    starts   int32 (halves + 1,): where the points with a first half begin
    seconds  int32 (points,): the second half of each point
    levels   int32 (points, dimensions): its levels
    indices  int32 (points,): its index in the codebook
    """

    digits: NDArray[np.int32]
    starts: NDArray[np.int32]
    seconds: NDArray[np.int32]
    levels: NDArray[np.int32]
    indices: NDArray[np.int32]


def halved_points(scheme: LatticeScheme) -> HalvedPoints:
    """The points of a type's codebook, sorted by their first halves."""
    count, half = len(scheme.values), scheme.dimensions // 2
    weights = count ** np.arange(half)
    levels = np.searchsorted(scheme.values, codebook(scheme.name).values)
    firsts, seconds = levels[:, :half] @ weights, levels[:, half:] @ weights
    order = np.lexsort((seconds, firsts))
    halves = np.arange(count**half)
    return HalvedPoints(
        (halves[:, None] // weights % count).astype(np.int32),
        np.searchsorted(firsts[order], np.arange(len(halves) + 1)).astype(np.int32),
        seconds[order].astype(np.int32),
        levels[order].astype(np.int32),
        order.astype(np.int32),
    )


def _magnitudes(name: str) -> Callable[..., None]:
    """The `pack` of a type of magnitudes."""
    pack_rest, mask = PACK[name], 127 if name in _EVEN else 255

    @inline
    def pack(scales: Any, lane: Any, d: Any, indices: Any, signs: Any, packed: Any, at: Any) -> None:
        for octet in range(SUPER_BLOCK // OCTET):
            signs[octet] &= mask
        store_scalar(packed, at, np.uint16(d))
        pack_rest(scales, lane, indices, signs, packed, at)

    return pack


@inline
def _pack_iq1_s(scales: Any, lane: Any, d: Any, indices: Any, signs: Any, packed: Any, at: Any) -> None:
    store_scalar(packed, at, np.uint16(d))
    for sub in range(8):
        high = scales[sub * LANES + lane] << 12 | (signs[4 * sub] & 1) << 15
        for octet in range(4):
            index = indices[4 * sub + octet]
            packed[at + QS_1S + 4 * sub + octet] = np.uint8(index & 255)
            high |= index >> 8 << 3 * octet
        store_scalar(packed, at + QH_1S + 2 * sub, np.uint16(high))


@inline
def _pack_iq1_m(scales: Any, lane: Any, d: Any, indices: Any, signs: Any, packed: Any, at: Any) -> None:
    for sub in range(16):
        high = 0
        for octet in range(2):
            index = indices[2 * sub + octet]
            packed[at + QS_1M + 2 * sub + octet] = np.uint8(index & 255)
            high |= (index >> 8 | (signs[2 * sub + octet] & 1) << 3) << 4 * octet
        packed[at + QH_1M + sub] = np.uint8(high)
    for quarter in range(4):
        word = (np.int32(d) >> 4 * quarter & 15) << 12
        for sub in range(4):
            word |= scales[(4 * quarter + sub) * LANES + lane] << 3 * sub
        store_scalar(packed, at + SCALES_1M + 2 * quarter, np.uint16(word))


_EVEN: Final = ("IQ2_XXS", "IQ2_XS", "IQ3_XXS")

SCHEMES: Final = MappingProxyType({
    scheme.name: scheme
    for scheme in (
        LatticeScheme("IQ1_S", 32, 7, 1.0, False, 1, _pack_iq1_s),
        LatticeScheme("IQ1_M", 16, 7, 1.0, False, 2, _pack_iq1_m),
        LatticeScheme("IQ2_XXS", 32, 15, 0.125, True, 0, _magnitudes("IQ2_XXS")),
        LatticeScheme("IQ2_XS", 16, 15, 0.125, True, 0, _magnitudes("IQ2_XS")),
        LatticeScheme("IQ2_S", 16, 15, 0.125, False, 0, _magnitudes("IQ2_S")),
        LatticeScheme("IQ3_XXS", 32, 15, 0.25, True, 0, _magnitudes("IQ3_XXS")),
        LatticeScheme("IQ3_S", 32, 15, 1.0, False, 0, _magnitudes("IQ3_S")),
    )
})  # fmt: skip
"""The scheme of each lattice type."""

LEVEL_SHIFT: Final = SHIFT
"""How far points are shifted, in units of the scale."""
