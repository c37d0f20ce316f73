"""The legacy family: blocks of 32 with one scale (Q4_0, Q5_0, Q8_0) or a scale and a minimum (Q4_1, Q5_1), and the one- and
two-bit types of the same simplicity (Q1_0: 128, Q2_0: 64).

Without importance the scale follows from the extremes of a block, and vectorization is within the block. With importance
the scale is searched for, one block per lane. Rows are contiguous and blocks are independent, so both process the blocks
of all rows as one sequence.

Source: `quantize_row_*_ref`, `quantize_row_*_impl` and `dequantize_row_*` in `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import TYPES
from quantcli.kernels.blocks import Codec
from quantcli.kernels.blocks.packed_fields import (
    NIBBLES,
    even_eights,
    half_at,
    join_halves,
    nibbles,
    odd_eights,
    offsets,
    order_of_eights,
    store_nibbles,
    wide_nibbles,
)
from quantcli.kernels.blocks.reader import PART, CodeWriter, PackedReader, WideCodes
from quantcli.kernels.blocks.scale_fields import ScaleFields, float_scale
from quantcli.kernels.half import float_to_half
from quantcli.kernels.jit import inline, inline_once, kernel
from quantcli.kernels.rounding.block_lanes import mean_squares, transpose, transpose_back
from quantcli.kernels.rounding.scale_search import (
    affine_level,
    affine_search,
    finite_inverse,
    nearest_int,
    symmetric_search,
)
from quantcli.kernels.shorthand import F32, I32, U8, U32, Bytes, Floats, Vec
from quantcli.kernels.simd import (
    LANES,
    absolute,
    address,
    bits_mask,
    convert,
    first_lane,
    load,
    load_scalar,
    local,
    mask_bits,
    max_lanes,
    maximum,
    min_lanes,
    minimum,
    reinterpret,
    round_away,
    select,
    shuffle,
    splat,
    sqrt,
    store,
    store_scalar,
)

_BLOCK: Final = 32
_GROUP: Final = _BLOCK * LANES
_NO_FIELD: Final = -1
"""The offset of a field that a type does not have."""


def _places(name: str) -> tuple[int, ...]:
    """The size of a block of 32, and the byte offsets of low bits, fifth bits and minimum. The scale comes first."""
    return TYPES[name].block_bytes, *offsets(name, "qs", "qh", "m")


# Four and five bits: the packing of 32 levels


@inline
def _store_levels(packed: Bytes, at: int, low_at: int, high_at: int, levels: Vec) -> None:
    """Pack 32 levels, uint8, into the block at byte `at`. Levels j and j + 16 are the nibbles of byte j. The fifth bits,
    where the type has them (`high_at` is not -1), are the bits of one uint32."""
    if high_at != _NO_FIELD:
        store_scalar(packed, at + high_at, mask_bits((levels & U8(16)) != U8(0)))
    store_nibbles(packed, at + low_at, levels)


# Four and five bits without importance: a block is one vector


def _symmetric_plain(name: str, half: int) -> Callable[[Floats, Bytes], None]:
    """Levels -half..half-1. The first value of largest magnitude gets level -half, so the scale has the opposite sign."""
    size, low_at, high_at, _ = _places(name)

    @kernel
    def quantize(x: Floats, out: Bytes) -> None:
        values, packed = x.reshape(-1), out.reshape(-1)
        for block in range(values.size // _BLOCK):
            at, value = block * size, load(values, block * _BLOCK, _BLOCK)
            magnitude = absolute(value)
            largest = max_lanes(magnitude)
            # A block of zeros, of either sign, has the scale 0 / -half: negative zero.
            extreme = values[block * _BLOCK + first_lane(magnitude == largest)] if largest > F32(0) else F32(0)
            scale = extreme / F32(-half)
            inverse = finite_inverse(scale)
            # Where the inverse overflows, llama.cpp's cast from infinity gives level 0, not the middle.
            middle = F32(half + 0.5) if inverse != F32(0) or scale == F32(0) else F32(0)
            store_scalar(packed, at, float_to_half(scale))
            level = minimum(convert(value * inverse + middle, np.int32), splat(I32(2 * half - 1), _BLOCK))
            _store_levels(packed, at, low_at, high_at, convert(level, np.uint8))

    return quantize


def _affine_plain(name: str, top: int) -> Callable[[Floats, Bytes], None]:
    """Levels 0..top from the smallest to the largest value."""
    size, low_at, high_at, minimum_at = _places(name)

    @kernel
    def quantize(x: Floats, out: Bytes) -> None:
        values, packed = x.reshape(-1), out.reshape(-1)
        for block in range(values.size // _BLOCK):
            at, value = block * size, load(values, block * _BLOCK, _BLOCK)
            # Among zeros of both signs the first is the minimum. (Where there is none, for NaN, it is an arbitrary lane.)
            low = values[block * _BLOCK + first_lane(value == min_lanes(value)) % _BLOCK]
            scale = abs(max_lanes(value) - low) / F32(top)
            store_scalar(packed, at, float_to_half(scale))
            store_scalar(packed, at + minimum_at, float_to_half(low))
            scaled = (value - low) * finite_inverse(scale) + F32(0.5)
            level = minimum(convert(scaled, np.int32), splat(I32(top), _BLOCK))
            _store_levels(packed, at, low_at, high_at, convert(level, np.uint8))

    return quantize


# Four and five bits with importance: blocks are searched in lanes


Fit = Callable[[Floats, Floats, Bytes], tuple[Vec, Vec]]
"""An `inline` function of transposed values and weights. It writes the transposed levels and returns scale and minimum."""


def _symmetric_fit(half: int) -> Fit:
    @inline_once
    def fit(values: Floats, weight: Floats, levels: Bytes) -> tuple[Vec, Vec]:
        scale, inverse, empty = symmetric_search(values, weight, 0, _BLOCK, half, False)
        for element in range(_BLOCK):
            level = nearest_int(inverse * load(values, element * LANES, LANES))
            level = minimum(splat(I32(half - 1), LANES), maximum(splat(I32(-half), LANES), level)) + I32(half)
            store(levels, element * LANES, convert(select(empty, splat(I32(0), LANES), level), np.uint8))
        return scale, scale

    return fit


_FIRST_STEP: Final = -0.9
_STEP: Final = 0.05
_STEPS: Final = 36
"""Trials of the affine search: inverse scales (top - 0.9 + 0.05 i) / range for i in 0..36."""


def _affine_fit(top: int) -> Fit:
    @inline_once
    def fit(values: Floats, weight: Floats, levels: Bytes) -> tuple[Vec, Vec]:
        scale, below, inverse, low = affine_search(values, weight, 0, _BLOCK, top, _FIRST_STEP, _STEP, _STEPS, False)
        for element in range(_BLOCK):
            level = affine_level(load(values, element * LANES, LANES), inverse, low, top)
            store(levels, element * LANES, convert(level, np.uint8))
        return scale, -below

    return fit


def _weighted(name: str, fit: Fit) -> Callable[[Floats, Floats, Bytes], None]:
    """Search each block's scale with the error weights importance * sqrt(mean square of the row + x * x)."""
    size, low_at, high_at, minimum_at = _places(name)

    @kernel
    def quantize_weighted(x: Floats, importance: Floats, out: Bytes) -> None:
        flat, given, packed = address(x, np.float32), address(importance, np.float32), address(out, np.uint8)
        blocks, per_row = x.size // _BLOCK, importance.size // _BLOCK
        squares = np.empty(len(x) + LANES, np.float32)
        mean_squares(flat, len(x), importance.size, squares)
        starts, columns = local(LANES, np.intp), local(LANES, np.intp)
        square = local(LANES, np.float32)
        values, weight = local(_GROUP, np.float32), local(_GROUP, np.float32)
        levels, transposed_back = local(_GROUP, np.uint8), local(_GROUP, np.uint8)
        scales, minimums = local(LANES, np.uint16), local(LANES, np.uint16)
        for first in range(0, blocks, LANES):
            for lane in range(LANES):
                # The last group is padded with the last block.
                block = min(first + lane, blocks - 1)
                starts[lane] = block * _BLOCK
                columns[lane] = block % per_row * _BLOCK
                square[lane] = squares[block // per_row]
            transpose(flat, starts, _BLOCK, values)
            transpose(given, columns, _BLOCK, weight)
            variance = load(square, 0, LANES)
            for element in range(_BLOCK):
                value = load(values, element * LANES, LANES)
                spread = sqrt(variance + value * value)
                store(weight, element * LANES, load(weight, element * LANES, LANES) * spread)
            scale, low = fit(values, weight, levels)
            store(scales, 0, float_to_half(scale))
            store(minimums, 0, float_to_half(low))
            transpose_back(levels, _BLOCK, transposed_back)
            for lane in range(min(LANES, blocks - first)):
                at = (first + lane) * size
                store_scalar(packed, at, scales[lane])
                if minimum_at != _NO_FIELD:
                    store_scalar(packed, at + minimum_at, minimums[lane])
                level = load(transposed_back, lane * _BLOCK, _BLOCK)
                _store_levels(packed, at, low_at, high_at, level)

    return quantize_weighted


# Eight bits

_Q8_BYTES: Final = TYPES["Q8_0"].block_bytes
(_Q8_LEVELS,) = offsets("Q8_0", "qs")


@kernel
def _quantize_q8(x: Floats, out: Bytes) -> None:
    values, packed = x.reshape(-1), out.reshape(-1)
    for block in range(values.size // _BLOCK):
        at, value = block * _Q8_BYTES, load(values, block * _BLOCK, _BLOCK)
        scale = max_lanes(absolute(value)) / F32(127)
        store_scalar(packed, at, float_to_half(scale))
        level = convert(round_away(value * finite_inverse(scale)), np.int32)
        store(packed, at + _Q8_LEVELS, convert(level, np.uint8))


# One bit: the sign. The scale is the mean magnitude, summed sequentially

_Q1_BLOCK: Final = TYPES["Q1_0"].block_length
_Q1_GROUP: Final = _Q1_BLOCK * LANES
_Q1_BYTES: Final = TYPES["Q1_0"].block_bytes
(_Q1_LEVELS,) = offsets("Q1_0", "qs")
_WORD: Final = 32


@kernel
def _quantize_q1(x: Floats, out: Bytes) -> None:
    flat, packed = address(x, np.float32), address(out, np.uint8)
    blocks = x.size // _Q1_BLOCK
    starts = local(LANES, np.intp)
    values, scales = local(_Q1_GROUP, np.float32), local(LANES, np.uint16)
    for first in range(0, blocks, LANES):
        for lane in range(LANES):
            starts[lane] = min(first + lane, blocks - 1) * _Q1_BLOCK
        transpose(flat, starts, _Q1_BLOCK, values)
        total = splat(F32(0), LANES)
        for element in range(_Q1_BLOCK):
            total = total + absolute(load(values, element * LANES, LANES))
        store(scales, 0, float_to_half(total / F32(_Q1_BLOCK)))
        for lane in range(min(LANES, blocks - first)):
            at = (first + lane) * _Q1_BYTES
            store_scalar(packed, at, scales[lane])
            for word in range(_Q1_BLOCK // _WORD):
                signs = mask_bits(load(flat, starts[lane] + word * _WORD, _WORD) >= F32(0))
                store_scalar(packed, at + _Q1_LEVELS + word * _WORD // 8, signs)


# Two bits: -1, 0, 1 (and 2, which the quantizer never reaches) times the largest magnitude; four levels a byte

_Q2_BLOCK: Final = TYPES["Q2_0"].block_length
_Q2_BYTES: Final = TYPES["Q2_0"].block_bytes
(_Q2_LEVELS,) = offsets("Q2_0", "qs")


@inline
def _quads(levels: Vec) -> Vec:
    """Four neighbouring levels, uint8, in each byte."""
    # The bytes of a word are merged into its lowest byte.
    quads = reinterpret(levels, np.uint32)
    return convert(quads | (quads >> U32(6)) | (quads >> U32(12)) | (quads >> U32(18)), np.uint8)


@kernel
def _quantize_q2(x: Floats, out: Bytes) -> None:
    values, packed = x.reshape(-1), out.reshape(-1)
    for block in range(values.size // _Q2_BLOCK):
        at, value = block * _Q2_BYTES, load(values, block * _Q2_BLOCK, _Q2_BLOCK)
        scale = max_lanes(absolute(value))
        inverse = finite_inverse(scale)
        # Where the inverse overflows, llama.cpp's cast from infinity gives the lowest level, not the middle.
        middle = F32(1) if inverse != F32(0) or scale == F32(0) else F32(0)
        store_scalar(packed, at, float_to_half(scale))
        levels = convert(convert(round_away(value * inverse) + middle, np.int32), np.uint8)
        store(packed, at + _Q2_LEVELS, _quads(levels))


# --- reading -------------------------------------------------------------------------------------------------------------


def _low_bits(name: str) -> Callable[..., Any]:
    """Codes of four bits."""
    (levels,) = offsets(name, "qs")

    @inline
    def codes(weights: Any, offset: Any, part: Any) -> Any:
        return nibbles(weights, offset + levels)

    return codes


def _five_bits(name: str) -> Callable[..., Any]:
    """Codes of four bits, and their fifth bits in a word."""
    levels, high = offsets(name, "qs", "qh")

    @inline
    def codes(weights: Any, offset: Any, part: Any) -> Any:
        fifth = bits_mask(load_scalar(weights, offset + high, np.uint32))
        return nibbles(weights, offset + levels) | select(fifth, splat(U8(16), PART), splat(U8(0), PART))

    return codes


@inline
def _codes_8(weights: Any, offset: Any, part: Any) -> Any:
    return reinterpret(load(weights, offset + _Q8_LEVELS, PART), np.int8)


@inline
def _codes_1(weights: Any, offset: Any, part: Any) -> Any:
    positive = bits_mask(load_scalar(weights, offset + _Q1_LEVELS + part * (PART // 8), np.uint32))
    return select(positive, splat(U8(2), PART), splat(U8(0), PART))


@inline
def _codes_2(weights: Any, offset: Any, part: Any) -> Any:
    # Four neighbouring levels share a byte; each moves to a byte of a word of its own.
    quads = convert(load(weights, offset + _Q2_LEVELS + part * 8, 8), np.uint32)
    quads = (quads | (quads << U32(6)) | (quads << U32(12)) | (quads << U32(18))) & U32(0x03030303)
    return reinterpret(quads, np.uint8)


@inline
def _two_blocks_8(weights: Any, place: Any) -> Any:
    return join_halves(load(weights, place, PART), load(weights, place + _Q8_BYTES, PART))


@inline
def _wide_8(weights: Any, offset: Any) -> Any:
    at, step = offset + _Q8_LEVELS, 2 * _Q8_BYTES
    a, b = _two_blocks_8(weights, at), _two_blocks_8(weights, at + step)
    c, d = _two_blocks_8(weights, at + 2 * step), _two_blocks_8(weights, at + 3 * step)
    zero, low, high = U8(128), (even_eights(a, b), even_eights(c, d)), (odd_eights(a, b), odd_eights(c, d))
    return (
        _even_sixteens(low[0], low[1]) ^ zero, _even_sixteens(high[0], high[1]) ^ zero,
        _odd_sixteens(low[0], low[1]) ^ zero, _odd_sixteens(high[0], high[1]) ^ zero,
    )


_even_sixteens = shuffle(*(32 * pair + i for pair in range(4) for i in range(16)))
_odd_sixteens = shuffle(*(32 * pair + 16 + i for pair in range(4) for i in range(16)))
_WIDE_8: Final = WideCodes(
    _wide_8, 128, order_of_eights(4 * block + fourth for fourth in range(4) for block in (0, 2, 1, 3, 4, 6, 5, 7))
)


def _scales(name: str) -> Callable[..., Any]:
    """A block's scale, for each of its parts."""
    (place,), parts = offsets(name, "d"), TYPES[name].block_length // PART

    @inline
    def scales(weights: Any, offset: Any) -> Any:
        return splat(half_at(weights, offset + place), parts)

    return scales


def _minimum(name: str) -> Callable[..., Any]:
    """A block's minimum: the negated value of code 0."""
    (place,) = offsets(name, "m")

    @inline
    def minimum(weights: Any, offset: Any) -> Any:
        return splat(-half_at(weights, offset + place), 1)

    return minimum


def _reader(name: str, codes: Callable[..., Any], **how: Any) -> PackedReader:
    """The reader of a type whose blocks are one part."""
    (place,) = offsets(name, "d")
    return PackedReader(codes, _scales(name), group=PART, scale_half=place, **how)


# --- writing codes -------------------------------------------------------------------------------------------------------


def _level_writer(name: str, bits: int) -> CodeWriter:
    """The writer of codes of four or five bits."""
    _, low_at, high_at, _ = _places(name)

    @inline
    def store_codes(packed: Bytes, offset: int, codes: Bytes) -> None:
        _store_levels(packed, offset, low_at, high_at, load(codes, 0, _BLOCK))

    return CodeWriter(store_codes, range(1 << bits))


@inline
def _store_8(packed: Bytes, offset: int, codes: Bytes) -> None:
    store(packed, offset + _Q8_LEVELS, load(codes, 0, _BLOCK))


@inline
def _store_1(packed: Bytes, offset: int, codes: Bytes) -> None:
    for word in range(_Q1_BLOCK // _WORD):
        positive = mask_bits(load(codes, word * _WORD, _WORD) != U8(0))
        store_scalar(packed, offset + _Q1_LEVELS + word * _WORD // 8, positive)


@inline
def _store_2(packed: Bytes, offset: int, codes: Bytes) -> None:
    store(packed, offset + _Q2_LEVELS, _quads(load(codes, 0, _Q2_BLOCK)))


# llama.cpp's quantizer never gives -128 in Q8_0. In Q1_0 ties go to the positive weight.
_WRITER_8: Final = CodeWriter(_store_8, range(-127, 128))
_WRITER_1: Final = CodeWriter(_store_1, (2, 0))
_WRITER_2: Final = CodeWriter(_store_2, range(4))


def _codes(name: str, bits: int) -> Callable[..., Any]:
    return _low_bits(name) if bits == 4 else _five_bits(name)


def _wide(name: str, bits: int, zero: int) -> WideCodes | None:
    if bits != 4:
        return None
    (place,) = offsets(name, "qs")
    return WideCodes(wide_nibbles(place, TYPES[name].block_bytes), zero, NIBBLES)


def _fields(name: str) -> ScaleFields:
    (at_scale,), at_minimum = offsets(name, "d"), _places(name)[-1]
    return float_scale(TYPES[name].block_length, at_scale, None if at_minimum == _NO_FIELD else at_minimum)


def _symmetric(name: str, bits: int) -> Codec:
    half = 1 << (bits - 1)
    reader = _reader(name, _codes(name, bits), zero=half, wide=_wide(name, bits, half))
    quantizers = _symmetric_plain(name, half), _weighted(name, _symmetric_fit(half))
    return Codec(*quantizers, reader, _level_writer(name, bits), _fields(name))


def _affine(name: str, bits: int) -> Codec:
    top = (1 << bits) - 1
    reader = _reader(name, _codes(name, bits), minimums=_minimum(name), wide=_wide(name, bits, 0))
    quantizers = _affine_plain(name, top), _weighted(name, _affine_fit(top))
    return Codec(*quantizers, reader, _level_writer(name, bits), _fields(name))


_READER_1: Final = PackedReader(_codes_1, _scales("Q1_0"), group=PART, zero=1)
_READER_2: Final = PackedReader(_codes_2, _scales("Q2_0"), group=PART, zero=1)

CODECS: Final[Mapping[str, Codec]] = {
    "Q4_0": _symmetric("Q4_0", 4),
    "Q4_1": _affine("Q4_1", 4),
    "Q5_0": _symmetric("Q5_0", 5),
    "Q5_1": _affine("Q5_1", 5),
    "Q8_0": Codec(_quantize_q8, None, _reader("Q8_0", _codes_8, signed=True, wide=_WIDE_8), _WRITER_8, _fields("Q8_0")),
    "Q1_0": Codec(_quantize_q1, None, _READER_1, _WRITER_1, _fields("Q1_0")),
    "Q2_0": Codec(_quantize_q2, None, _READER_2, _WRITER_2, _fields("Q2_0")),
}
