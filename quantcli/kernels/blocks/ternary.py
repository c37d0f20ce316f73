"""The ternary types: super-blocks of 256 weights, each -1, 0 or 1 times the block's largest magnitude. TQ2_0 has two bits
per weight, TQ1_0 packs five base-three digits (trits) in a byte.

Vectorization is within a block. The importance matrix has no effect.

Source: `quantize_row_tq*_ref` and `dequantize_row_tq*` in `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import SUPER_BLOCK, TYPES
from quantcli.kernels.blocks import Codec
from quantcli.kernels.blocks.packed_fields import bits_from, half_at, offsets, store_fourths
from quantcli.kernels.blocks.reader import PART, CodeWriter, PackedReader
from quantcli.kernels.blocks.scale_fields import float_scale
from quantcli.kernels.half import float_to_half
from quantcli.kernels.jit import inline, kernel
from quantcli.kernels.rounding.scale_search import finite_inverse
from quantcli.kernels.shorthand import F32, U8, U32, Bytes, Floats, Vec
from quantcli.kernels.simd import (
    absolute,
    convert,
    lane,
    load,
    max_lanes,
    maximum,
    reinterpret,
    round_away,
    select,
    shuffle,
    splat,
    store,
    store_scalar,
)

_WIDE: Final = 64
_STRIPE: Final = 32


@inline
def _largest(values: Floats, start: int) -> Any:
    """The largest magnitude of a super-block."""
    largest = absolute(load(values, start, _WIDE))
    for element in range(_WIDE, SUPER_BLOCK, _WIDE):
        largest = maximum(largest, absolute(load(values, start + element, _WIDE)))
    return max_lanes(largest)


@inline
def _digits(value: Vec, inverse: Any) -> Vec:
    """Quantize to codes 0, 1, 2, uint8."""
    return convert(convert(round_away(value * inverse) + F32(1), np.int32), np.uint8)


# Two bits a weight

_TQ2_BYTES: Final = TYPES["TQ2_0"].block_bytes
_TQ2_LEVELS, _TQ2_SCALE = offsets("TQ2_0", "qs", "d")


@kernel
def _quantize_tq2(x: Floats, out: Bytes) -> None:
    values, packed = x.reshape(-1), out.reshape(-1)
    for block in range(values.size // SUPER_BLOCK):
        at, start = block * _TQ2_BYTES, block * SUPER_BLOCK
        scale = _largest(values, start)
        inverse = finite_inverse(scale)
        store_scalar(packed, at + _TQ2_SCALE, float_to_half(scale))
        for half in range(2):
            first = start + half * 4 * _STRIPE
            byte = _digits(load(values, first, _STRIPE), inverse)
            byte = byte | (_digits(load(values, first + _STRIPE, _STRIPE), inverse) << U8(2))
            byte = byte | (_digits(load(values, first + 2 * _STRIPE, _STRIPE), inverse) << U8(4))
            byte = byte | (_digits(load(values, first + 3 * _STRIPE, _STRIPE), inverse) << U8(6))
            store(packed, at + _TQ2_LEVELS + half * _STRIPE, byte)


_TQ1_BYTES: Final = TYPES["TQ1_0"].block_bytes
_TQ1_LEVELS, _TQ1_REST, _TQ1_SCALE = offsets("TQ1_0", "qs", "qh", "d")
_NARROW: Final = 16
_LAST: Final = 4
_SECOND: Final = 5 * _STRIPE
_THIRD: Final = _SECOND + 5 * _NARROW


@inline
def _fraction(number: Vec) -> Vec:
    """ceil(number * 256 / 243) of 0..242, uint8: the number as a fixed-point fraction of 3**5. Multiplying the byte by
    three then carries the next digit out above its eighth bit."""
    return convert((convert(number, np.uint32) * U32(69042) + U32(65535)) >> U32(16), np.uint8)


@kernel
def _quantize_tq1(x: Floats, out: Bytes) -> None:
    values, packed = x.reshape(-1), out.reshape(-1)
    for block in range(values.size // SUPER_BLOCK):
        at, start = block * _TQ1_BYTES, block * SUPER_BLOCK
        scale = _largest(values, start)
        inverse = finite_inverse(scale)
        store_scalar(packed, at + _TQ1_SCALE, float_to_half(scale))
        wide = splat(U8(0), _STRIPE)
        for digit in range(5):
            wide = wide + wide + wide + _digits(load(values, start + digit * _STRIPE, _STRIPE), inverse)
        store(packed, at + _TQ1_LEVELS, _fraction(wide))
        narrow = splat(U8(0), _NARROW)
        for digit in range(5):
            narrow = narrow + narrow + narrow + _digits(load(values, start + _SECOND + digit * _NARROW, _NARROW), inverse)
        store(packed, at + _TQ1_LEVELS + _STRIPE, _fraction(narrow))
        # A word is a digit of each of the four bytes, and no byte of the sum overflows: four bytes at once.
        words = reinterpret(_digits(load(values, start + _THIRD, _NARROW), inverse), np.uint32)
        rest = lane(words, 0) * U32(81) + lane(words, 1) * U32(27) + lane(words, 2) * U32(9) + lane(words, 3) * U32(3)
        store(packed, at + _TQ1_REST, _fraction(reinterpret(splat(U32(rest), 1), np.uint8)))


# --- reading -------------------------------------------------------------------------------------------------------------

_POWERS: Final = 3 ** np.arange(5, dtype=np.uint8)
_QUAD_POWERS: Final = np.repeat(_POWERS[:4], 4)

_join = shuffle(*range(32))
_four_times = shuffle(*(4 * (0, 1, 2, 3)))


@inline
def _carried(fractions: Any) -> Any:
    """The digits carried out of bytes by a multiplication by three: 1 from 86 on, 2 from 171 on."""
    zero, one = splat(U8(0), PART), splat(U8(1), PART)
    return select(fractions >= U8(86), one, zero) + select(fractions >= U8(171), one, zero)


@inline
def _codes_tq1(weights: Any, offset: Any, part: Any) -> Any:
    # 32 bytes hold parts 0 to 4; 16 bytes five half parts from part 5 on, and four bytes the last half part.
    if part < 5:
        return _carried(load(weights, offset + _TQ1_LEVELS, PART) * _POWERS[part])
    narrow = load(weights, offset + _TQ1_LEVELS + PART, 16)
    digit = 2 * (part - 5)
    if part < 7:
        return _carried(_join(narrow * _POWERS[digit], narrow * _POWERS[digit + 1]))
    rest = load(weights, offset + _TQ1_REST, 4)
    return _carried(_join(narrow * _POWERS[4], _four_times(rest, rest) * load(_QUAD_POWERS, 0, 16)))


@inline
def _codes_tq2(weights: Any, offset: Any, part: Any) -> Any:
    return bits_from(load(weights, offset + _TQ2_LEVELS + part // 4 * PART, PART), part % 4 * 2, U8(3))


def _scale_at(place: int) -> Callable[..., Any]:
    @inline
    def scales(weights: Any, offset: Any) -> Any:
        return splat(half_at(weights, offset + place), 8)

    return scales


# --- writing codes -------------------------------------------------------------------------------------------------------


@inline
def _store_tq1(packed: Bytes, offset: int, codes: Bytes) -> None:
    # The digits of a number are 32, 16 or 4 codes apart: the inverse of `_codes_tq1`.
    wide, narrow, rest = splat(U8(0), _STRIPE), splat(U8(0), _NARROW), splat(U8(0), _LAST)
    for digit in range(5):
        wide = wide + wide + wide + load(codes, digit * _STRIPE, _STRIPE)
        narrow = narrow + narrow + narrow + load(codes, _SECOND + digit * _NARROW, _NARROW)
    for digit in range(4):
        rest = rest + rest + rest + load(codes, _THIRD + digit * _LAST, _LAST)
    store(packed, offset + _TQ1_LEVELS, _fraction(wide))
    store(packed, offset + _TQ1_LEVELS + _STRIPE, _fraction(narrow))
    store(packed, offset + _TQ1_REST, _fraction(rest + rest + rest))


@inline
def _store_tq2(packed: Bytes, offset: int, codes: Bytes) -> None:
    for half in range(2):
        store_fourths(packed, offset + _TQ2_LEVELS + half * _STRIPE, codes, half * 4 * _STRIPE)


_TERNARY: Final = range(3)

CODECS: Final[Mapping[str, Codec]] = {
    "TQ1_0": Codec(
        _quantize_tq1, None, PackedReader(_codes_tq1, _scale_at(_TQ1_SCALE), group=PART, zero=1, scale_half=_TQ1_SCALE),
        CodeWriter(_store_tq1, _TERNARY), float_scale(SUPER_BLOCK, _TQ1_SCALE),
    ),
    "TQ2_0": Codec(
        _quantize_tq2, None, PackedReader(_codes_tq2, _scale_at(_TQ2_SCALE), group=PART, zero=1, scale_half=_TQ2_SCALE),
        CodeWriter(_store_tq2, _TERNARY), float_scale(SUPER_BLOCK, _TQ2_SCALE),
    ),
}
