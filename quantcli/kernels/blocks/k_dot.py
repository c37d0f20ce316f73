"""How products read the K types: 256 weights in sub-blocks of 16 or 32, whose scales are integers times the block's.

Codes are unsigned; what they are counted from (the minimum of Q2_K, Q4_K and Q5_K, the middle of Q3_K and Q6_K) is left to
the product of the minimums with sums of activations. Source of the layouts: `ggml-common.h`, `dequantize_row_q*_K`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from quantcli.kernels.blocks import PackedDot
from quantcli.kernels.half import half_to_float
from quantcli.kernels.jit import inline
from quantcli.kernels.simd import convert, load, load_scalar, reinterpret, splat, store
from quantcli.kernels.types import TYPES

U8 = np.uint8
U32 = np.uint32
U64 = np.uint64
F32 = np.float32

_PART: Final = 32


def _at(name: str, *fields: str) -> tuple[int, ...]:
    return tuple(TYPES[name].offset(field) for field in fields)


_Q2_SCALES, _Q2_LEVELS, _Q2_D, _Q2_MIN = _at("Q2_K", "scales", "qs", "d", "dmin")
_Q3_HIGH, _Q3_LOW, _Q3_SCALES, _Q3_D = _at("Q3_K", "hmask", "qs", "scales", "d")
_Q4_D, _Q4_MIN, _Q4_SCALES, _Q4_LEVELS = _at("Q4_K", "d", "dmin", "scales", "qs")
_Q5_HIGH, _Q5_LEVELS = _at("Q5_K", "qh", "qs")
_Q6_LOW, _Q6_HIGH, _Q6_SCALES, _Q6_D = _at("Q6_K", "ql", "qh", "scales", "d")


@inline
def half_at(weights: Any, place: Any) -> Any:
    """The half at byte `place`, as float32."""
    return half_to_float(load_scalar(weights, place, np.uint16))


@inline
def eight_floats(word: Any) -> Any:
    """The eight bytes of a uint64, the lowest first, as float32 lanes."""
    return convert(reinterpret(splat(U64(word), 1), np.uint8), np.float32)


@inline
def _pair(low: Any, high: Any) -> Any:
    """Two uint32 as one uint64."""
    return U64(low) | U64(high) << U64(32)


@inline
def _codes_2(weights: Any, offset: Any, part: Any) -> Any:
    levels = load(weights, offset + _Q2_LEVELS + part // 4 * _PART, _PART)
    return (levels >> U8(part % 4 * 2)) & U8(3)


@inline
def _scales_2(weights: Any, offset: Any, scales: Any, minimums: Any) -> None:
    d, dmin = half_at(weights, offset + _Q2_D), half_at(weights, offset + _Q2_MIN)
    packed = load(weights, offset + _Q2_SCALES, 16)
    store(scales, 0, convert(packed & U8(15), np.float32) * d)
    store(minimums, 0, convert(packed >> U8(4), np.float32) * dmin)


@inline
def _codes_3(weights: Any, offset: Any, part: Any) -> Any:
    low = load(weights, offset + _Q3_LOW + part // 4 * _PART, _PART)
    high = load(weights, offset + _Q3_HIGH, _PART)
    return ((low >> U8(part % 4 * 2)) & U8(3)) | (((high >> U8(part)) & U8(1)) << U8(2))


@inline
def _scales_3(weights: Any, offset: Any, scales: Any, minimums: Any) -> None:
    # 16 scales of six bits: the low four in 8 bytes (8 to 15 in their upper halves), the high two in 4 bytes.
    d = half_at(weights, offset + _Q3_D)
    low = load_scalar(weights, offset + _Q3_SCALES, np.uint64)
    high = load_scalar(weights, offset + _Q3_SCALES + 8, np.uint32)
    two, four = U32(0x03030303), U64(0x0F0F0F0F0F0F0F0F)
    first = (low & four) | _pair(high & two, (high >> U32(2)) & two) << U64(4)
    second = ((low >> U64(4)) & four) | _pair((high >> U32(4)) & two, (high >> U32(6)) & two) << U64(4)
    for at, word in ((0, first), (8, second)):
        scale = (eight_floats(word) - F32(32)) * d
        store(scales, at, scale)
        store(minimums, at, scale * F32(4))


@inline
def _codes_4(weights: Any, offset: Any, part: Any) -> Any:
    return (load(weights, offset + _Q4_LEVELS + part // 2 * _PART, _PART) >> U8(part % 2 * 4)) & U8(15)


@inline
def _codes_5(weights: Any, offset: Any, part: Any) -> Any:
    low = (load(weights, offset + _Q5_LEVELS + part // 2 * _PART, _PART) >> U8(part % 2 * 4)) & U8(15)
    return low | (((load(weights, offset + _Q5_HIGH, _PART) >> U8(part)) & U8(1)) << U8(4))


@inline
def _scales_45(weights: Any, offset: Any, scales: Any, minimums: Any) -> None:
    # Twelve bytes hold 8 scales and 8 minimums of six bits: of the first four whole bytes with the high bits of the others.
    d, dmin = half_at(weights, offset + _Q4_D), half_at(weights, offset + _Q4_MIN)
    a = load_scalar(weights, offset + _Q4_SCALES, np.uint32)
    b = load_scalar(weights, offset + _Q4_SCALES + 4, np.uint32)
    c = load_scalar(weights, offset + _Q4_SCALES + 8, np.uint32)
    six, four, two = U32(0x3F3F3F3F), U32(0x0F0F0F0F), U32(0x03030303)
    scale = _pair(a & six, (c & four) | ((a >> U32(6)) & two) << U32(4))
    minimum = _pair(b & six, ((c >> U32(4)) & four) | ((b >> U32(6)) & two) << U32(4))
    store(scales, 0, eight_floats(scale) * d)
    store(minimums, 0, eight_floats(minimum) * dmin)


@inline
def _codes_6(weights: Any, offset: Any, part: Any) -> Any:
    half, quarter = part // 4, part % 4
    low = load(weights, offset + _Q6_LOW + half * 64 + quarter % 2 * _PART, _PART)
    high = load(weights, offset + _Q6_HIGH + half * _PART, _PART)
    return ((low >> U8(quarter // 2 * 4)) & U8(15)) | (((high >> U8(quarter * 2)) & U8(3)) << U8(4))


@inline
def _scales_6(weights: Any, offset: Any, scales: Any, minimums: Any) -> None:
    d = half_at(weights, offset + _Q6_D)
    scale = convert(reinterpret(load(weights, offset + _Q6_SCALES, 16), np.int8), np.float32) * d
    store(scales, 0, scale)
    store(minimums, 0, scale * F32(32))


DOTS: Final[Mapping[str, PackedDot]] = MappingProxyType(
    {
        "Q2_K": PackedDot(_codes_2, _scales_2, group=16, affine=True),
        "Q3_K": PackedDot(_codes_3, _scales_3, group=16, affine=True),
        "Q4_K": PackedDot(_codes_4, _scales_45, group=32, affine=True),
        "Q5_K": PackedDot(_codes_5, _scales_45, group=32, affine=True),
        "Q6_K": PackedDot(_codes_6, _scales_6, group=16, affine=True),
    }
)
"""How `matmul` reads each type."""
