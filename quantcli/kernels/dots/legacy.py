"""How products read the types whose blocks are small and have one scale: Q4_0 to Q8_0, Q1_0 and Q2_0.

Codes are unsigned, but for Q8_0; the level that stands for zero becomes a minimum. Source of the layouts: `ggml-common.h`
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
from quantcli.kernels.shorthand import F32, U8, U32
from quantcli.kernels.simd import bits_mask, convert, load, load_scalar, reinterpret, select, splat, store
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


def _one_scale(name: str, zero: int) -> Callable[..., None]:
    """A block's scale for all its parts; `zero` is the code that stands for zero."""
    (place,) = offsets(name, "d")
    parts, level = TYPES[name].block_length // _PART, F32(zero)

    @inline
    def scales(weights: Any, offset: Any, scales: Any, minimums: Any) -> None:
        scale = half_at(weights, offset + place)
        for part in range(parts):
            store(scales, part, splat(scale, 1))
            store(minimums, part, splat(scale * level, 1))

    return scales


def _scale_and_minimum(name: str) -> Callable[..., None]:
    """A block's scale and the value of its code 0."""
    place, low = offsets(name, "d", "m")

    @inline
    def scales(weights: Any, offset: Any, scales: Any, minimums: Any) -> None:
        store(scales, 0, splat(half_at(weights, offset + place), 1))
        store(minimums, 0, splat(-half_at(weights, offset + low), 1))

    return scales


DOTS: Final = MappingProxyType(
    {
        "Q4_0": PackedDot(_low_bits("Q4_0"), _one_scale("Q4_0", 8), group=32, affine=True),
        "Q4_1": PackedDot(_low_bits("Q4_1"), _scale_and_minimum("Q4_1"), group=32, affine=True),
        "Q5_0": PackedDot(_five_bits("Q5_0"), _one_scale("Q5_0", 16), group=32, affine=True),
        "Q5_1": PackedDot(_five_bits("Q5_1"), _scale_and_minimum("Q5_1"), group=32, affine=True),
        "Q8_0": PackedDot(_codes_8, _one_scale("Q8_0", 0), group=32, affine=False),
        "Q1_0": PackedDot(_codes_1, _one_scale("Q1_0", 1), group=32, affine=True),
        "Q2_0": PackedDot(_codes_2, _one_scale("Q2_0", 1), group=32, affine=True),
    }
)
