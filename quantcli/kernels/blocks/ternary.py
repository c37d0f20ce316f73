"""The ternary types: super-blocks of 256 weights, each -1, 0 or 1 times the block's largest magnitude. TQ2_0 spends two
bits on a weight, TQ1_0 puts five base-three digits into a byte.

A block is worked through in vectors of its own elements; importance changes nothing.

Source: `quantize_row_tq*_ref` and `dequantize_row_tq*` in `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from quantcli.kernels.blocks import Codec
from quantcli.kernels.half import float_to_half, half_to_float
from quantcli.kernels.jit import inline, kernel
from quantcli.kernels.search import finite_inverse
from quantcli.kernels.shorthand import F32, I32, U8, U32, Bytes, Floats, Vec
from quantcli.kernels.simd import (
    absolute,
    convert,
    lane,
    load,
    load_scalar,
    max_lanes,
    maximum,
    reinterpret,
    round_away,
    splat,
    store,
    store_scalar,
)
from quantcli.kernels.types import SUPER_BLOCK, TYPES

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
    """Values to 0, 1, 2, uint8."""
    return convert(convert(round_away(value * inverse) + F32(1), np.int32), np.uint8)


# Two bits a weight

_TQ2_BYTES: Final = TYPES["TQ2_0"].block_bytes
_TQ2_LEVELS: Final = TYPES["TQ2_0"].offset("qs")
_TQ2_SCALE: Final = TYPES["TQ2_0"].offset("d")


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


@kernel
def _dequantize_tq2(data: Bytes, out: Floats) -> None:
    packed, values = data.reshape(-1), out.reshape(-1)
    for block in range(values.size // SUPER_BLOCK):
        at, start = block * _TQ2_BYTES, block * SUPER_BLOCK
        scale = half_to_float(load_scalar(packed, at + _TQ2_SCALE, np.uint16))
        for half in range(2):
            byte = load(packed, at + _TQ2_LEVELS + half * _STRIPE, _STRIPE)
            for stripe in range(4):
                digit = (byte >> U8(2 * stripe)) & U8(3)
                place = start + (4 * half + stripe) * _STRIPE
                store(values, place, (convert(digit, np.float32) - F32(1)) * scale)


# Five digits a byte: 32 bytes hold 5 x 32 weights, 16 bytes 5 x 16, and 4 bytes 4 x 4 with a last digit of 0

_TQ1_BYTES: Final = TYPES["TQ1_0"].block_bytes
_TQ1_LEVELS: Final = TYPES["TQ1_0"].offset("qs")
_TQ1_REST: Final = TYPES["TQ1_0"].offset("qh")
_TQ1_SCALE: Final = TYPES["TQ1_0"].offset("d")
_NARROW: Final = 16
_SECOND: Final = 5 * _STRIPE
_THIRD: Final = _SECOND + 5 * _NARROW


@inline
def _fraction(number: Vec) -> Vec:
    """ceil(number * 256 / 243) of 0..242, uint8: the number as a fraction of 3**5, so that multiplying the byte by three
    brings out the next digit above its eighth bit."""
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


@inline
def _next_digit(fraction: Vec) -> Vec:
    """What times three carries out of the byte, less one: the weight in units of the scale, float32."""
    return convert(convert(fraction, np.int32) * I32(3) >> I32(8), np.float32) - F32(1)


@kernel
def _dequantize_tq1(data: Bytes, out: Floats) -> None:
    packed, values = data.reshape(-1), out.reshape(-1)
    for block in range(values.size // SUPER_BLOCK):
        at, start = block * _TQ1_BYTES, block * SUPER_BLOCK
        scale = half_to_float(load_scalar(packed, at + _TQ1_SCALE, np.uint16))
        wide = load(packed, at + _TQ1_LEVELS, _STRIPE)
        narrow = load(packed, at + _TQ1_LEVELS + _STRIPE, _NARROW)
        rest = load(packed, at + _TQ1_REST, 4)
        for digit in range(5):
            store(values, start + digit * _STRIPE, _next_digit(wide) * scale)
            store(values, start + _SECOND + digit * _NARROW, _next_digit(narrow) * scale)
            wide, narrow = wide + wide + wide, narrow + narrow + narrow
        for digit in range(4):
            store(values, start + _THIRD + digit * 4, _next_digit(rest) * scale)
            rest = rest + rest + rest


CODECS: Final[Mapping[str, Codec]] = {
    "TQ1_0": Codec(_quantize_tq1, None, _dequantize_tq1),
    "TQ2_0": Codec(_quantize_tq2, None, _dequantize_tq2),
}
