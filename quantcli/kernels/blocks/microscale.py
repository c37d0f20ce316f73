"""The microscaling types: FP4 (E2M1) levels with a shared scale. MXFP4 has blocks of 32 with a power-of-two scale (E8M0).
NVFP4 has blocks of 64, in four sub-blocks of 16 with an unsigned E4M3 scale (UE4M3) each.

Vectorization is within a block. The importance matrix has no effect.

Source: `quantize_row_mxfp4_ref`, `quantize_row_nvfp4_ref`, `dequantize_row_*` in `ggml-quants.c`, `ggml_e8m0_to_fp32_half`,
`ggml_fp32_to_ue4m3`, `ggml_ue4m3_to_fp32` in `ggml-impl.h`, `kvalues_fp4` in `ggml-common.h`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import floor, frexp, log
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import TYPES
from quantcli.kernels.blocks import Codec
from quantcli.kernels.blocks.packed_fields import bits_from, nibbles, offsets, store_nibbles
from quantcli.kernels.blocks.reader import PART, CodeWriter, PackedReader
from quantcli.kernels.blocks.scale_fields import ScaleFields
from quantcli.kernels.jit import inline, kernel
from quantcli.kernels.shorthand import F32, I32, U8, U32, Bytes, Floats, Vec
from quantcli.kernels.simd import (
    absolute,
    byte_table,
    convert,
    lane,
    load,
    load_scalar,
    max_lanes,
    reinterpret,
    select,
    shuffle,
    splat,
    store,
)

LEVELS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""The doubled values of the sixteen codes: `kvalues_fp4`. The scales below are halved to compensate."""


def _code_search(lanes: int) -> Callable[[Vec, Any], Vec]:
    """A function that returns the codes, uint8, of the levels nearest to value / scale; ties go to the first.

    The errors are computed and compared as in `best_index_mxfp4`. Comparing with midpoints would be shorter, but wrong for
    values far above the scale, where the rounded errors of several levels are equal. A level of the opposite sign is never
    nearer than zero, so comparing magnitudes suffices.
    """

    @inline
    def nearest_codes(value: Vec, scale: Any) -> Vec:
        magnitude = absolute(value)
        best = magnitude
        nearest = splat(I32(0), lanes)
        for code in range(1, 8):
            error = absolute(F32(LEVELS[code]) * scale - magnitude)
            nearer = error < best
            best = select(nearer, error, best)
            nearest = select(nearer, splat(I32(code), lanes), nearest)
        negative = (value < F32(0)) & (nearest != I32(0))
        return convert(select(negative, nearest | I32(8), nearest), np.uint8)

    return nearest_codes


# MXFP4: a power of two for 32 weights

_MX_BLOCK: Final = TYPES["MXFP4"].block_length
_MX_BYTES: Final = TYPES["MXFP4"].block_bytes
_MX_SCALE, _MX_CODES = offsets("MXFP4", "e", "qs")
_MX_PAIRS: Final = _MX_BLOCK // 2
_mx_codes = _code_search(_MX_BLOCK)
_mx_low = shuffle(*range(_MX_PAIRS))
_mx_high = shuffle(*range(_MX_PAIRS, _MX_BLOCK))

_SMALLEST_EXPONENT: Final = -149


def _early_steps(exponent: int) -> int:
    """How many float32 numbers just below 2**exponent have a `log2f` that rounds up to `exponent`, because their logarithm
    is nearer to it than to the preceding float32. llama.cpp's scale exponent is floor(log2f(x)). This reproduces that
    rounding without a C library. Counted in steps (ulps) of 24-bit floats."""
    if exponent == 0:
        return 0
    # The spacing of the floats just below the exponent, which are larger in magnitude where it is negative.
    digits = frexp(abs(exponent))[1] - (exponent > 0 and abs(exponent) & (abs(exponent) - 1) == 0)
    half_step = 2.0 ** (digits - 1 - 24)
    return floor(half_step * log(2) * 2.0**24)


_EARLY: Final = np.array([_early_steps(exponent) for exponent in range(_SMALLEST_EXPONENT, 130)], np.int32)
_NORMAL: Final = F32(2.0**-126)


@inline
def _floor_log2(value: Any) -> Any:
    """floor(log2f(value)) of a positive float32 as int32, with the rounding of `log2f`."""
    shift = I32(24) if value < _NORMAL else I32(0)
    scaled = value * F32(2.0**24) if value < _NORMAL else value
    bits = lane(reinterpret(splat(scaled, 1), np.int32), 0)
    exponent = (bits >> I32(23)) - I32(127) - shift
    missing = I32(0x800000) - (bits & I32(0x7FFFFF))
    return exponent + I32(1) if missing <= _EARLY[exponent + I32(1 - _SMALLEST_EXPONENT)] else exponent


@inline
def power_scale(exponent: Any) -> Any:
    """2**(exponent - 128) of a stored E8M0 exponent 0..255, float32: half its value."""
    bits = U32(0x00200000) << U32(exponent) if exponent < 2 else U32(exponent - 1) << U32(23)
    return lane(reinterpret(splat(U32(bits), 1), np.float32), 0)


@kernel
def _quantize_mx(x: Floats, out: Bytes) -> None:
    values, packed = x.reshape(-1), out.reshape(-1)
    for block in range(values.size // _MX_BLOCK):
        at, value = block * _MX_BYTES, load(values, block * _MX_BLOCK, _MX_BLOCK)
        largest = max_lanes(absolute(value))
        # The largest level is 6 = 2**2 * 1.5. Below 2**-125 the byte wraps around, as in llama.cpp: the scale is huge and
        # the codes are zero.
        exponent = (_floor_log2(largest) + I32(125)) & I32(255) if largest > F32(0) else I32(0)
        packed[at] = exponent
        codes = _mx_codes(value, power_scale(exponent))
        store(packed, at + _MX_CODES, _mx_low(codes, codes) | (_mx_high(codes, codes) << U8(4)))


_NV_BLOCK: Final = TYPES["NVFP4"].block_length
_NV_BYTES: Final = TYPES["NVFP4"].block_bytes
_NV_SCALES, _NV_CODES = offsets("NVFP4", "d", "qs")
_NV_PARTS: Final = TYPES["NVFP4"].layout["d"].shape[0]
_NV_LENGTH: Final = _NV_BLOCK // _NV_PARTS
_NV_PAIRS: Final = _NV_LENGTH // 2
_nv_codes = _code_search(_NV_LENGTH)
_nv_low = shuffle(*range(_NV_PAIRS))
_nv_high = shuffle(*range(_NV_PAIRS, _NV_LENGTH))


def _half_e4m3(byte: int) -> float:
    """Half the value of an unsigned E4M3 float: four exponent bits (bias 7), three mantissa bits; NaN counts as 0."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if byte == 0x7F:
        return 0.0
    return (mantissa / 8 if exponent == 0 else 1 + mantissa / 8) * 2.0 ** (max(exponent, 1) - 7) / 2


HALF_E4M3: Final = np.array([_half_e4m3(byte) for byte in range(256)], np.float32)


@inline
def _to_e4m3(value: Any) -> Any:
    """Cast a float32 >= 0 to unsigned E4M3, uint8. The mantissa is rounded by its next bit alone. Subnormals are rounded to
    the nearest subnormal, ties up. Everything that rounds to 256 and above becomes the largest, 448."""
    if value < F32(2.0**-6):
        return U8(min(I32(value * F32(512) + F32(0.5)), I32(7)))
    bits = lane(reinterpret(splat(value, 1), np.int32), 0)
    # Bits 20..30 are the exponent and a three-bit mantissa: a carry out of the mantissa increments the exponent correctly.
    rounded = (((bits >> I32(19)) + I32(1)) >> I32(1)) - I32((127 - 7) << 3)
    return U8(rounded) if rounded < I32(0x78) else U8(0x7E)


@kernel
def _quantize_nv(x: Floats, out: Bytes) -> None:
    values, packed = x.reshape(-1), out.reshape(-1)
    for block in range(values.size // _NV_BLOCK):
        at, start = block * _NV_BYTES, block * _NV_BLOCK
        for part in range(_NV_PARTS):
            value = load(values, start + part * _NV_LENGTH, _NV_LENGTH)
            scale = _to_e4m3(max_lanes(absolute(value)) / F32(6))
            packed[at + part] = scale
            codes = _nv_codes(value, HALF_E4M3[scale])
            store(packed, at + _NV_CODES + part * _NV_PAIRS, _nv_low(codes, codes) | (_nv_high(codes, codes) << U8(4)))


# --- reading -------------------------------------------------------------------------------------------------------------

_ZERO: Final = 16
_level_of = byte_table(*(level + _ZERO for level in LEVELS))
# Eight bytes hold 16 weights: the low nibbles, then the high ones.
_by_sixteens = shuffle(*range(8), *range(16, 24), *range(8, 16), *range(24, 32))
# The inverse, for `store_nibbles`: the low nibbles of both groups of eight bytes, then the high ones.
_by_eights = shuffle(*range(8), *range(16, 24), *range(8, 16), *range(24, 32))
_pair, _quad = shuffle(0, 1), shuffle(0, 1, 2, 3)


@inline
def _codes_mx(weights: Any, offset: Any, part: Any) -> Any:
    return reinterpret(_level_of(nibbles(weights, offset + _MX_CODES)), np.uint8)


@inline
def _scales_mx(weights: Any, offset: Any) -> Any:
    exponent = np.int32(load_scalar(weights, offset + _MX_SCALE, np.uint8))
    return splat(power_scale(exponent), 1)


@inline
def _codes_nv(weights: Any, offset: Any, part: Any) -> Any:
    pairs = load(weights, offset + _NV_CODES + 16 * part, 16)
    return reinterpret(_level_of(_by_sixteens(bits_from(pairs, 0, U8(15)), bits_from(pairs, 4, U8(15)))), np.uint8)


@inline
def _scale_nv(weights: Any, place: Any) -> Any:
    return splat(HALF_E4M3[load_scalar(weights, place, np.uint8)], 1)


@inline
def _scales_nv(weights: Any, offset: Any) -> Any:
    at = offset + _NV_SCALES
    first = _pair(_scale_nv(weights, at), _scale_nv(weights, at + 1))
    return _quad(first, _pair(_scale_nv(weights, at + 2), _scale_nv(weights, at + 3)))


# --- writing codes -------------------------------------------------------------------------------------------------------

_MAGNITUDES: Final = LEVELS[:8]
_code_of = byte_table(*(_MAGNITUDES.index(level) if level in _MAGNITUDES else 0 for level in range(16)))
# The levels in the order of their codes: ties go to the first, as in `_code_search`.
_CODES: Final = tuple(dict.fromkeys(level + _ZERO for level in LEVELS))


@inline
def _four_bits(codes: Vec) -> Vec:
    """The four bits of 32 levels, which are uint8, plus `_ZERO`. A zero is a positive one."""
    negative = codes < U8(_ZERO)
    magnitude = select(negative, U8(_ZERO) - codes, codes - U8(_ZERO))
    bits = reinterpret(_code_of(magnitude), np.uint8)
    return select(negative, bits | U8(8), bits)


@inline
def _store_mx(packed: Bytes, offset: int, codes: Bytes) -> None:
    store_nibbles(packed, offset + _MX_CODES, _four_bits(load(codes, 0, PART)))


@inline
def _store_nv(packed: Bytes, offset: int, codes: Bytes) -> None:
    for part in range(_NV_BLOCK // PART):
        bits = _four_bits(load(codes, part * PART, PART))
        store_nibbles(packed, offset + _NV_CODES + part * 16, _by_eights(bits, bits))


# --- scale fields --------------------------------------------------------------------------------------------------------


def _byte_scales(group: int, at: int, count: int, scales: range, value: Callable[..., Any]) -> ScaleFields:
    """The fields of a type with `count` scales of eight bits from byte `at` on; their bits are the quantized scales."""

    @inline
    def load_fields(packed: Any, offset: Any, quantized: Any, minimums: Any) -> Any:
        for sub in range(count):
            quantized[sub] = packed[offset + at + sub]
        return F32(1), F32(0)

    @inline
    def store_fields(packed: Any, offset: Any, d: Any, dmin: Any, quantized: Any, minimums: Any) -> None:
        for sub in range(count):
            packed[offset + at + sub] = U8(quantized[sub])

    return ScaleFields(load_fields, store_fields, group, scales, value=value)


@inline
def _value_nv(scale: Any) -> Any:
    return HALF_E4M3[scale]


CODECS: Final[Mapping[str, Codec]] = {
    "MXFP4": Codec(
        _quantize_mx, None, PackedReader(_codes_mx, _scales_mx, group=32, zero=_ZERO), CodeWriter(_store_mx, _CODES),
        _byte_scales(_MX_BLOCK, _MX_SCALE, 1, range(255), power_scale),
    ),
    "NVFP4": Codec(
        _quantize_nv, None, PackedReader(_codes_nv, _scales_nv, group=16, zero=_ZERO), CodeWriter(_store_nv, _CODES),
        _byte_scales(_NV_LENGTH, _NV_SCALES, _NV_PARTS, range(127), _value_nv),
    ),
}
