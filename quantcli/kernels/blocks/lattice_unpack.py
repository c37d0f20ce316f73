"""IQ1, IQ2 and IQ3 blocks to float32.

A super-block is 32 groups of eight weights. A group is a point of the type's codebook (two for IQ3, of four weights each),
the signs of its weights (IQ1: a small shift of all of them), and a scale that some neighbouring groups share.

Source: `dequantize_row_iq*` in `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.blocks.codebooks import codebook
from quantcli.kernels.blocks.super_blocks import load_half
from quantcli.kernels.half import half_to_float
from quantcli.kernels.jit import inline, kernel
from quantcli.kernels.shorthand import F32, Bytes, Floats
from quantcli.kernels.simd import bits_mask, convert, load, load_scalar, select, shuffle, splat, store
from quantcli.kernels.types import SUPER_BLOCK, TYPES

Points = NDArray[np.int8]

SHIFT: Final = np.float32(0.125)
"""`IQ1S_DELTA`: how far the values of a group of IQ1 lie above or below -1, 0 and 1, in units of its scale."""

_JOIN = shuffle(*range(8))


def _at(name: str, field: str) -> int:
    """The byte at which a field of a block type begins."""
    fields = TYPES[name].layout.fields
    assert fields is not None
    return fields[field][1]


# Where the fields of a block begin, in bytes.
QS_2XXS: Final = _at("IQ2_XXS", "qs")
QS_2XS, SCALES_2XS = _at("IQ2_XS", "qs"), _at("IQ2_XS", "scales")
QS_2S, QH_2S, SCALES_2S = _at("IQ2_S", "qs"), _at("IQ2_S", "qh"), _at("IQ2_S", "scales")
QS_3XXS: Final = _at("IQ3_XXS", "qs")
QS_3S, QH_3S, SIGNS_3S, SCALES_3S = (_at("IQ3_S", field) for field in ("qs", "qh", "signs", "scales"))
QS_1S, QH_1S = _at("IQ1_S", "qs"), _at("IQ1_S", "qh")
QS_1M, QH_1M, SCALES_1M = _at("IQ1_M", "qs"), _at("IQ1_M", "qh"), _at("IQ1_M", "scales")


@inline
def even_signs(bits: Any) -> Any:
    """Eight signs from seven: the last makes the number of minus signs even."""
    parity = bits ^ (bits >> 4)
    parity ^= parity >> 2
    parity ^= parity >> 1
    return bits | ((parity & 1) << 7)


@inline
def _write_signed(out: Floats, place: int, scale: Any, values: Any, signs: Any) -> None:
    """Write a group of eight: scale * value, negated where the bit of `signs` is set."""
    product = splat(F32(scale), 8) * convert(values, np.float32)
    store(out, place, select(bits_mask(np.uint8(signs)), product * F32(-1), product))


@inline
def _write_shifted(out: Floats, place: int, scale: Any, values: Any, negative: Any) -> None:
    """Write a group of eight: scale * (value + shift), or minus the shift."""
    shift = -SHIFT if negative else SHIFT
    store(out, place, splat(F32(scale), 8) * (convert(values, np.float32) + shift))


@inline
def _pair(points: Points, first: Any, second: Any) -> Any:
    """Two points of four dimensions, joined."""
    return _JOIN(load(points, first * 4, 4), load(points, second * 4, 4))


# Each of these unpacks the super-block at byte `block` to `out[to:]`.


@inline
def _iq2_xxs(data: Bytes, block: int, points: Points, out: Floats, to: int) -> None:
    d = load_half(data, block)
    for part in range(8):
        entry = block + QS_2XXS + 8 * part
        word = load_scalar(data, entry + 4, np.uint32)
        scale = d * (F32(0.5) + F32(word >> 28)) * F32(0.25)
        for group in range(4):
            values = load(points, np.intp(data[entry + group]) * 8, 8)
            signs = even_signs(np.int64(word >> (7 * group)) & 127)
            _write_signed(out, to + part * 32 + group * 8, scale, values, signs)


@inline
def _iq2_xs(data: Bytes, block: int, points: Points, out: Floats, to: int) -> None:
    d = load_half(data, block)
    for group in range(32):
        nibble = data[block + SCALES_2XS + group // 4] >> (group % 4 // 2 * 4) & 15
        scale = d * (F32(0.5) + F32(nibble)) * F32(0.25)
        entry = np.int64(load_scalar(data, block + QS_2XS + 2 * group, np.uint16))
        _write_signed(out, to + group * 8, scale, load(points, (entry & 511) * 8, 8), even_signs(entry >> 9))


@inline
def _iq2_s(data: Bytes, block: int, points: Points, out: Floats, to: int) -> None:
    d = load_half(data, block)
    for group in range(32):
        nibble = data[block + SCALES_2S + group // 4] >> (group % 4 // 2 * 4) & 15
        scale = d * (F32(0.5) + F32(nibble)) * F32(0.25)
        high = np.intp(data[block + QH_2S + group // 4]) >> (2 * (group % 4)) & 3
        index = np.intp(data[block + QS_2S + group]) | high << 8
        _write_signed(out, to + group * 8, scale, load(points, index * 8, 8), data[block + QS_2S + 32 + group])


@inline
def _iq3_xxs(data: Bytes, block: int, points: Points, out: Floats, to: int) -> None:
    d = load_half(data, block)
    for part in range(8):
        word = load_scalar(data, block + QS_3XXS + 64 + 4 * part, np.uint32)
        scale = d * (F32(0.5) + F32(word >> 28)) * F32(0.5)
        for group in range(4):
            entry = block + QS_3XXS + 8 * part + 2 * group
            values = _pair(points, np.intp(data[entry]), np.intp(data[entry + 1]))
            signs = even_signs(np.int64(word >> (7 * group)) & 127)
            _write_signed(out, to + part * 32 + group * 8, scale, values, signs)


@inline
def _iq3_s(data: Bytes, block: int, points: Points, out: Floats, to: int) -> None:
    d = load_half(data, block)
    for group in range(32):
        part = group // 4
        nibble = data[block + SCALES_3S + part // 2] >> (part % 2 * 4) & 15
        scale = d * F32(1 + 2 * nibble)
        high = np.intp(data[block + QH_3S + part]) >> (2 * (group % 4))
        first = np.intp(data[block + QS_3S + 2 * group]) | (high & 1) << 8
        second = np.intp(data[block + QS_3S + 2 * group + 1]) | (high >> 1 & 1) << 8
        _write_signed(out, to + group * 8, scale, _pair(points, first, second), data[block + SIGNS_3S + group])


@inline
def _iq1_s(data: Bytes, block: int, points: Points, out: Floats, to: int) -> None:
    d = load_half(data, block)
    for part in range(8):
        high = np.intp(load_scalar(data, block + QH_1S + 2 * part, np.uint16))
        scale = d * F32(2 * (high >> 12 & 7) + 1)
        for group in range(4):
            index = np.intp(data[block + QS_1S + 4 * part + group]) | (high >> (3 * group) & 7) << 8
            _write_shifted(out, to + part * 32 + group * 8, scale, load(points, index * 8, 8), high >> 15)


@inline
def _iq1_m(data: Bytes, block: int, points: Points, out: Floats, to: int) -> None:
    # The four bits above each three-bit scale quadruple hold a nibble of d.
    bits = np.int64(0)
    for quarter in range(4):
        bits |= np.int64(load_scalar(data, block + SCALES_1M + 2 * quarter, np.uint16) >> 12) << (4 * quarter)
    d = half_to_float(np.uint16(bits))
    for group in range(32):
        word = np.int64(load_scalar(data, block + SCALES_1M + group // 8 * 2, np.uint16))
        scale = d * F32(2 * (word >> (group % 8 // 2 * 3) & 7) + 1)
        high = np.intp(data[block + QH_1M + group // 2]) >> (group % 2 * 4)
        index = np.intp(data[block + QS_1M + group]) | (high & 7) << 8
        _write_shifted(out, to + group * 8, scale, load(points, index * 8, 8), high & 8)


def _unpacker(name: str, unpack: Any) -> Callable[[Bytes, Floats], None]:
    """The `dequantize` of a type's `Codec`, from the function for one super-block."""
    block_bytes = TYPES[name].block_bytes

    @kernel
    def rows(data: Bytes, points: Points, out: Floats) -> None:
        packed, flat = data.reshape(-1), out.reshape(-1)
        for block in range(flat.size // SUPER_BLOCK):
            unpack(packed, block * block_bytes, points, flat, block * SUPER_BLOCK)

    def dequantize(data: Bytes, out: Floats) -> None:
        rows(data, codebook(name).values, out)

    return dequantize


DEQUANTIZE: Final = {
    name: _unpacker(name, unpack)
    for name, unpack in (
        ("IQ1_S", _iq1_s),
        ("IQ1_M", _iq1_m),
        ("IQ2_XXS", _iq2_xxs),
        ("IQ2_XS", _iq2_xs),
        ("IQ2_S", _iq2_s),
        ("IQ3_XXS", _iq3_xxs),
        ("IQ3_S", _iq3_s),
    )
}
"""The `dequantize` of each type."""
