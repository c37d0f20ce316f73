"""The non-linear four-bit types: IQ4_NL (blocks of 32) and IQ4_XS (super-blocks of eight such blocks, each with a six-bit
scale).

The scale of a block of 32 is searched for over 16 trials, with a block, or for IQ4_XS a super-block, in each lane. Rows are
contiguous and blocks are independent, so both types process the blocks of all rows as one sequence.

Source: `quantize_row_iq4_nl_impl` and `dequantize_row_iq4_*` in `ggml-quants.c`, `kvalues_iq4nl` in `ggml-common.h`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import SUPER_BLOCK, TYPES
from quantcli.kernels.blocks import Codec
from quantcli.kernels.blocks.packed_fields import (
    NIBBLES,
    half_at,
    half_from,
    nibbles,
    offsets,
    store_nibbles,
    wide_nibbles,
)
from quantcli.kernels.blocks.reader import PART, CodeWriter, IntegerScales, PackedReader, WideCodes
from quantcli.kernels.blocks.scale_fields import float_scale, integer_scales
from quantcli.kernels.blocks.super_blocks import quantizer_of
from quantcli.kernels.half import float_to_half
from quantcli.kernels.jit import inline, inline_once, kernel
from quantcli.kernels.rounding.block_lanes import transpose, transpose_back
from quantcli.kernels.rounding.scale_search import TINY, nearest_int
from quantcli.kernels.shorthand import F32, I32, U32, Bytes, Floats, Vec
from quantcli.kernels.simd import (
    LANES,
    absolute,
    address,
    byte_table,
    convert,
    load,
    load_scalar,
    local,
    maximum,
    minimum,
    reinterpret,
    select,
    splat,
    sqrt,
    staircase,
    store,
    store_scalar,
)

LEVELS: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The codebook: the values of the sixteen codes, in units of the block's scale (`kvalues_iq4nl`)."""

# llama.cpp finds the level by binary search and finally compares two differences. These are exact wherever they are close,
# so the result is the same: the upper level from the midpoint on. For NaN (zero times an infinite inverse) it is the last.
_MIDPOINTS: Final = tuple((low + high) / 2 for low, high in pairwise(LEVELS))
_nearest_level = staircase(_MIDPOINTS, LEVELS)
_nearest_code = staircase(_MIDPOINTS, range(16))
_level_of = byte_table(*LEVELS)
_ZERO: Final = 128
_unsigned_level_of = byte_table(*(level + _ZERO for level in LEVELS))

_BLOCK: Final = 32
_NL_BYTES: Final = TYPES["IQ4_NL"].block_bytes
_NL_D, _NL_CODES = offsets("IQ4_NL", "d", "qs")
_XS_BYTES: Final = TYPES["IQ4_XS"].block_bytes
_XS_D, _XS_HIGH, _XS_LOW, _XS_CODES = offsets("IQ4_XS", "d", "scales_h", "scales_l", "qs")
_XS_BLOCKS: Final = SUPER_BLOCK // _BLOCK
_XS_SCALES: Final = _XS_BLOCKS * LANES
_PAIRS: Final = 16
_TRIALS: Final = 7
"""Trial inverse scales on each side of the one that maps the value of largest magnitude to the first level."""


@inline_once
def _error_weights(values: Floats, length: int, weight: Floats, weighted: bool) -> None:
    """Turn the importance in `weight` into error weights: importance * sqrt(2 * mean square + x * x). The mean is over all
    `length` elements, summed in order. Without importance the weights are x * x."""
    total = splat(F32(0), LANES)
    if weighted:
        for element in range(length):
            value = load(values, element * LANES, LANES)
            total = total + value * value
        total = total * F32(2 / length)
    for element in range(length):
        value = load(values, element * LANES, LANES)
        if weighted:
            store(weight, element * LANES, load(weight, element * LANES, LANES) * sqrt(total + value * value))
        else:
            store(weight, element * LANES, value * value)


@inline
def _trial(values: Floats, weight: Floats, base: int, inverse: Vec) -> tuple[Vec, Vec]:
    """The sums of w * level * x and w * level * level over one block, for the levels nearest to inverse * x."""
    sum_lx = splat(F32(0), LANES)
    sum_l2 = splat(F32(0), LANES)
    for element in range(base, base + _BLOCK):
        value = load(values, element * LANES, LANES)
        level = _nearest_level(inverse * value)
        weighted = load(weight, element * LANES, LANES) * level
        sum_lx = sum_lx + weighted * value
        sum_l2 = sum_l2 + weighted * level
    return sum_lx, sum_l2


@inline
def _search_scale(values: Floats, weight: Floats, base: int) -> Vec:
    """The scale of the 32 elements from `base` on, by weighted least squares over the trials; 0 for blocks below `TINY`."""
    zero = splat(F32(0), LANES)
    largest = zero
    extreme = zero
    for element in range(base, base + _BLOCK):
        value = load(values, element * LANES, LANES)
        above = absolute(value) > largest
        largest = select(above, absolute(value), largest)
        extreme = select(above, value, extreme)
    # Not first_level / extreme, as in the trials: llama.cpp inverts a rounded scale here.
    inverse = splat(F32(1), LANES) / (extreme / F32(-LEVELS[0]))
    sum_lx, sum_l2 = _trial(values, weight, base, inverse)
    scale = select(sum_l2 > zero, sum_lx / sum_l2, zero)
    best = scale * sum_lx
    for trial in range(-_TRIALS, _TRIALS + 1):
        inverse = splat(F32(trial) + F32(LEVELS[0]), LANES) / extreme
        sum_lx, sum_l2 = _trial(values, weight, base, inverse)
        better = (sum_l2 > zero) & (sum_lx * sum_lx > best * sum_l2)
        scale = select(better, sum_lx / sum_l2, scale)
        best = select(better, scale * sum_lx, best)
    return select(largest < TINY, zero, scale)


@inline
def _encode(values: Floats, base: int, scale: Vec, codes: Bytes) -> None:
    """Write the codes nearest to x / scale of the 32 elements from `base` on, in pairs: j and j + 16 share byte j."""
    inverse = select(scale != splat(F32(0), LANES), splat(F32(1), LANES) / scale, splat(F32(0), LANES))
    for pair in range(_PAIRS):
        low = convert(_nearest_code(inverse * load(values, (base + pair) * LANES, LANES)), np.int32)
        high = convert(_nearest_code(inverse * load(values, (base + pair + _PAIRS) * LANES, LANES)), np.int32)
        store(codes, (base // 2 + pair) * LANES, convert(low | (high << I32(4)), np.uint8))


@inline_once
def _write_plain(
    values: Floats, weight: Floats, codes: Bytes, transposed_back: Bytes, packed: Bytes, first: int, count: int
) -> None:
    """Quantize transposed blocks of 32 and write the first `count` of them from block `first` on."""
    scale = _search_scale(values, weight, 0)
    _encode(values, 0, scale, codes)
    transpose_back(codes, _PAIRS, transposed_back)
    scale_bits = local(LANES, np.uint16)
    store(scale_bits, 0, float_to_half(scale))
    for lane in range(count):
        at = (first + lane) * _NL_BYTES
        store_scalar(packed, at, scale_bits[lane])
        store(packed, at + _NL_CODES, load(transposed_back, lane * _PAIRS, _PAIRS))


@inline_once
def _write_super(
    values: Floats, weight: Floats, codes: Bytes, transposed_back: Bytes, packed: Bytes, first: int, count: int
) -> None:
    """Quantize transposed super-blocks and write the first `count` of them from block `first` on. The scales of the eight
    blocks are integers -32..31 times the super-block's, which the one of largest magnitude sets."""
    zero = splat(F32(0), LANES)
    scales = local(_XS_SCALES, np.float32)
    largest = zero
    extreme = zero
    for block in range(_XS_BLOCKS):
        scale = _search_scale(values, weight, block * _BLOCK)
        store(scales, block * LANES, scale)
        above = absolute(scale) > largest
        largest = select(above, absolute(scale), largest)
        extreme = select(above, scale, extreme)
    step = -extreme / F32(32)
    inverse = select(step != zero, splat(F32(1), LANES) / step, zero)
    # Four low bits and two high bits per block: the fields scales_l and scales_h as words, one per lane.
    low_bits, high_bits = splat(U32(0), LANES), splat(U32(0), LANES)
    for block in range(_XS_BLOCKS):
        level = nearest_int(inverse * load(scales, block * LANES, LANES))
        level = maximum(splat(I32(-32), LANES), minimum(splat(I32(31), LANES), level))
        _encode(values, block * _BLOCK, step * convert(level, np.float32), codes)
        stored = convert(level + I32(32), np.uint32)
        low_bits = low_bits | ((stored & U32(15)) << U32(4 * block))
        high_bits = high_bits | ((stored >> U32(4)) << U32(2 * block))
    transpose_back(codes, SUPER_BLOCK // 2, transposed_back)
    scale_bits, low_words, high_words = local(LANES, np.uint16), local(LANES, np.uint32), local(LANES, np.uint16)
    store(scale_bits, 0, float_to_half(step))
    store(low_words, 0, low_bits)
    store(high_words, 0, convert(high_bits, np.uint16))
    for lane in range(count):
        at = (first + lane) * _XS_BYTES
        store_scalar(packed, at, scale_bits[lane])
        store_scalar(packed, at + _XS_HIGH, high_words[lane])
        store_scalar(packed, at + _XS_LOW, low_words[lane])
        for part in range(0, SUPER_BLOCK // 2, _PAIRS):
            store(packed, at + _XS_CODES + part, load(transposed_back, lane * (SUPER_BLOCK // 2) + part, _PAIRS))


def _quantizer(length: int, write: Callable[..., None], weighted: bool) -> Any:
    """The quantizer of a type with blocks of `length`, with importance or without."""
    room, code_bytes = length * LANES, length // 2 * LANES

    @kernel
    def rows(x: Floats, importance: Floats, out: Bytes) -> None:
        flat, given, packed = address(x, np.float32), address(importance, np.float32), address(out, np.uint8)
        blocks, per_row = x.size // length, importance.size // length
        starts, columns = local(LANES, np.intp), local(LANES, np.intp)
        values, weight = local(room, np.float32), local(room, np.float32)
        codes, transposed_back = local(code_bytes, np.uint8), local(code_bytes, np.uint8)
        for first in range(0, blocks, LANES):
            for lane in range(LANES):
                # The last group is padded with the last block.
                block = min(first + lane, blocks - 1)
                starts[lane] = block * length
                columns[lane] = block % per_row * length
            transpose(flat, starts, length, values)
            if weighted:
                transpose(given, columns, length, weight)
            _error_weights(values, length, weight, weighted)
            write(values, weight, codes, transposed_back, packed, first, min(LANES, blocks - first))

    return quantizer_of(rows, weighted)


# --- reading -------------------------------------------------------------------------------------------------------------

_LOW_PLACES: Final = np.arange(0, 32, 4, dtype=np.uint32)
_HIGH_PLACES: Final = np.arange(0, 16, 2, dtype=np.uint32)


@inline
def _codes_nl(weights: Any, offset: Any, part: Any) -> Any:
    return _level_of(nibbles(weights, offset + _NL_CODES))


@inline
def _scales_nl(weights: Any, offset: Any) -> Any:
    return splat(half_at(weights, offset + _NL_D), 1)


@inline
def _codes_xs(weights: Any, offset: Any, part: Any) -> Any:
    return _level_of(nibbles(weights, offset + _XS_CODES + 16 * part))


@inline
def _unsigned_code(nibbles_of: Any) -> Any:
    return reinterpret(_unsigned_level_of(nibbles_of), np.uint8)


_WIDE_NL: Final = WideCodes(wide_nibbles(_NL_CODES, _NL_BYTES, _unsigned_code), _ZERO, NIBBLES)
_WIDE_XS: Final = WideCodes(wide_nibbles(_XS_CODES, 16, _unsigned_code), _ZERO, NIBBLES)


@inline
def _quantized_scales_xs(weights: Any, offset: Any) -> Any:
    # Eight scales of six bits: the low four bits in one 32-bit word, the high two in a 16-bit word.
    low = splat(load_scalar(weights, offset + _XS_LOW, np.uint32), 8) >> load(_LOW_PLACES, 0, 8)
    high = splat(U32(load_scalar(weights, offset + _XS_HIGH, np.uint16)), 8) >> load(_HIGH_PLACES, 0, 8)
    return convert((low & U32(15)) | ((high & U32(3)) << U32(4)), np.int32) - I32(32)


@inline
def _scales_xs(weights: Any, offset: Any) -> Any:
    return convert(_quantized_scales_xs(weights, offset), np.float32) * half_at(weights, offset + _XS_D)


# --- writing codes -------------------------------------------------------------------------------------------------------


def _level_writer(at: int, parts: int) -> CodeWriter:
    """The writer of a type whose blocks have their codes from byte `at` on, in `parts` parts of 32."""

    @inline
    def store_codes(packed: Bytes, offset: int, codes: Bytes) -> None:
        for part in range(parts):
            level = convert(reinterpret(load(codes, part * PART, PART), np.int8), np.float32)
            code = convert(convert(_nearest_code(level), np.int32), np.uint8)
            store_nibbles(packed, offset + at + part * _PAIRS, code)

    # Ties go to the upper level, as in `_nearest_level`.
    return CodeWriter(store_codes, tuple(reversed(LEVELS)))


# --- scale fields --------------------------------------------------------------------------------------------------------


@inline
def _pack_scales_xs(packed: Bytes, offset: int, scales: Any, minimums: Any) -> None:
    low, high = U32(0), U32(0)
    for block in range(_XS_BLOCKS):
        stored = U32(scales[block] + 32)
        low |= (stored & U32(15)) << U32(4 * block)
        high |= (stored >> U32(4)) << U32(2 * block)
    store_scalar(packed, offset + _XS_LOW, U32(low))
    store_scalar(packed, offset + _XS_HIGH, np.uint16(high))


_FIELDS_XS: Final = integer_scales(
    IntegerScales(_quantized_scales_xs, half_from(_XS_D)), _BLOCK, range(-32, 32), (_XS_D,), _pack_scales_xs
)

CODECS: Final[Mapping[str, Codec]] = {
    "IQ4_NL": Codec(
        _quantizer(_BLOCK, _write_plain, False), _quantizer(_BLOCK, _write_plain, True),
        PackedReader(_codes_nl, _scales_nl, group=PART, signed=True, scale_half=_NL_D, wide=_WIDE_NL),
        _level_writer(_NL_CODES, 1), float_scale(_BLOCK, _NL_D),
    ),
    "IQ4_XS": Codec(
        _quantizer(SUPER_BLOCK, _write_super, False), _quantizer(SUPER_BLOCK, _write_super, True),
        PackedReader(_codes_xs, _scales_xs, group=PART, signed=True, wide=_WIDE_XS),
        _level_writer(_XS_CODES, _XS_BLOCKS), _FIELDS_XS,
    ),
}
