"""How products read the types whose blocks are small and have one scale: Q4_0 to Q8_0, Q1_0 and Q2_0.

Codes are unsigned, but for Q8_0. Source of the layouts: `ggml-common.h`
and `dequantize_row_q*` in `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from quantcli.kernels.dots import PackedDot
from quantcli.kernels.dots.pieces import half_at, nibbles, offsets
from quantcli.kernels.jit import inline
from quantcli.kernels.shorthand import U8, U32
from quantcli.kernels.simd import bits_mask, convert, load, load_scalar, reinterpret, select, splat
from quantcli.kernels.types import TYPES

_PART: Final = 32
_QUADS: Final = 8


def _low_bits(name: str) -> Callable[..., Any]:
    """Codes of four bits."""
    (levels,) = offsets(name, "qs")

    @inline
    def codes(weights: Any, offset: Any, part: Any) -> Any:
        return nibbles(weights, offset + levels)

    return codes


def _five_bits(name: str) -> Callable[..., Any]:
    """Codes of four bits, and the fifth of all of them in a word."""
    levels, high = offsets(name, "qs", "qh")

    @inline
    def codes(weights: Any, offset: Any, part: Any) -> Any:
        fifth = bits_mask(load_scalar(weights, offset + high, np.uint32))
        return nibbles(weights, offset + levels) | select(fifth, splat(U8(16), _PART), splat(U8(0), _PART))

    return codes


@inline
def _codes_8(weights: Any, offset: Any, part: Any) -> Any:
    return reinterpret(load(weights, offset + _Q8_LEVELS, _PART), np.int8)


@inline
def _codes_1(weights: Any, offset: Any, part: Any) -> Any:
    positive = bits_mask(load_scalar(weights, offset + _Q1_LEVELS + part * (_PART // 8), np.uint32))
    return select(positive, splat(U8(2), _PART), splat(U8(0), _PART))


@inline
def _codes_2(weights: Any, offset: Any, part: Any) -> Any:
    # Four neighbouring levels share a byte; each moves to a byte of a word of its own.
    quads = convert(load(weights, offset + _Q2_LEVELS + part * _QUADS, _QUADS), np.uint32)
    quads = (quads | (quads << U32(6)) | (quads << U32(12)) | (quads << U32(18))) & U32(0x03030303)
    return reinterpret(quads, np.uint8)


(_Q8_LEVELS,) = offsets("Q8_0", "qs")
(_Q1_LEVELS,) = offsets("Q1_0", "qs")
(_Q2_LEVELS,) = offsets("Q2_0", "qs")


def _scales(name: str) -> Callable[..., Any]:
    """A block's scale, for each of its parts."""
    (place,), parts = offsets(name, "d"), TYPES[name].block_length // _PART

    @inline
    def scales(weights: Any, offset: Any) -> Any:
        return splat(half_at(weights, offset + place), parts)

    return scales


def _minimum(name: str) -> Callable[..., Any]:
    """The value of a block's code 0, negated."""
    (place,) = offsets(name, "m")

    @inline
    def minimum(weights: Any, offset: Any) -> Any:
        return splat(-half_at(weights, offset + place), 1)

    return minimum


def _small(name: str, codes: Callable[..., Any], **how: Any) -> PackedDot:
    """The dot of a type whose blocks are one part."""
    (place,) = offsets(name, "d")
    return PackedDot(codes, _scales(name), group=_PART, scale_half=place, **how)


DOTS: Final = MappingProxyType(
    {
        "Q4_0": _small("Q4_0", _low_bits("Q4_0"), zero=8),
        "Q4_1": _small("Q4_1", _low_bits("Q4_1"), minimums=_minimum("Q4_1")),
        "Q5_0": _small("Q5_0", _five_bits("Q5_0"), zero=16),
        "Q5_1": _small("Q5_1", _five_bits("Q5_1"), minimums=_minimum("Q5_1")),
        "Q8_0": _small("Q8_0", _codes_8, signed=True),
        "Q1_0": PackedDot(_codes_1, _scales("Q1_0"), group=_PART, zero=1),
        "Q2_0": PackedDot(_codes_2, _scales("Q2_0"), group=_PART, zero=1),
    }
)
