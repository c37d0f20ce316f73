"""Q2_K, Q4_K, Q5_K: super-blocks of 256 weights whose sub-blocks have a scale and a minimum.

x ~ d * scale * level - dmin * minimum, with d and dmin per super-block.

A batch is `LANES` super-blocks. Their sub-blocks are searched `LANES` at a time, one per lane. Then the sub-blocks' scales
and minimums are themselves quantized, one super-block per lane. Finally the levels are requantized with the dequantized
scales, and packed. Source: `quantize_row_q{2,4,5}_K_ref` and `_impl` in `ggml-quants.c`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import SUPER_BLOCK as K
from quantcli.core.block_types import TYPES
from quantcli.kernels.blocks import Codec
from quantcli.kernels.blocks.packed_fields import (
    FOURTHS,
    bits_from,
    bits_to,
    eight_levels,
    first_sixteens,
    fourths,
    half_from,
    lane_fields,
    last_sixteens,
    moved_bits,
    offsets,
    order_of_eights,
    pair_of_words,
    second_word,
)
from quantcli.kernels.blocks.reader import PART, CodeWriter, IntegerScales, WideCodes, with_integer_scales
from quantcli.kernels.blocks.scale_fields import integer_scales
from quantcli.kernels.blocks.super_blocks import (
    batch_spread,
    fill,
    gather_batch,
    group_count,
    importance_weights,
    quantizer_of,
    spread_out,
    store_half,
    transpose_group,
    untranspose_group,
)
from quantcli.kernels.half import float_to_half, half_to_float
from quantcli.kernels.jit import inline, inline_once, kernel
from quantcli.kernels.rounding.scale_search import affine_level, affine_search, nearest_int, positive_search
from quantcli.kernels.shorthand import F32, I32, U8, U32, Scratch, Vec
from quantcli.kernels.simd import (
    LANES,
    absolute,
    address,
    advance,
    convert,
    load,
    load_scalar,
    local,
    maximum,
    minimum,
    reinterpret,
    select,
    shuffle,
    splat,
    sqrt,
    store,
)


@inline_once
def _plain_weights(x: Scratch, base: int, length: int, bits: int, weight: Scratch) -> None:
    """Error weights without an importance matrix: |x|, plus the sub-block's RMS for 4 and 5 bits."""
    floor = splat(F32(0), LANES)
    if bits > 2:
        squares = splat(F32(0), LANES)
        for element in range(length):
            value = load(x, base + element * LANES, LANES)
            squares = squares + value * value
        floor = sqrt(squares / F32(length))
    for element in range(length):
        store(weight, element * LANES, floor + absolute(load(x, base + element * LANES, LANES)))


@inline_once
def _largest_scales(values: Scratch, per_block: int, top: int, levels: Scratch) -> Vec:
    """Quantize the sub-blocks' scales (or minimums) of `LANES` super-blocks to 0..top relative to the largest one. The
    levels, int32, go to `levels`; both are transposed. Returns the super-blocks' unit, largest / top."""
    zero = splat(F32(0), LANES)
    largest = zero
    for sub in range(per_block):
        value = load(values, sub * LANES, LANES)
        largest = select(value > largest, value, largest)
    inverse = select(largest > zero, splat(F32(top), LANES) / largest, zero)
    for sub in range(per_block):
        # A uint8 in llama.cpp: a negative scale wraps before it is clamped to the maximum.
        level = nearest_int(inverse * load(values, sub * LANES, LANES)) & I32(255)
        store(levels, sub * LANES, minimum(splat(I32(top), LANES), level) if per_block == 8 else level)
    return largest / F32(top)


@inline
def _pack_6_bit_scales(
    scales: Scratch, minimums: Scratch, block: int, stride: int, out: NDArray[np.uint8], at: int
) -> None:
    """Eight 6-bit scales and eight 6-bit minimums in twelve bytes: the layout of Q4_K and Q5_K. They lie `stride` apart
    from number `block` on."""
    for sub in range(4):
        scale, low = scales[sub * stride + block], minimums[sub * stride + block]
        high_scale, high_low = scales[(sub + 4) * stride + block], minimums[(sub + 4) * stride + block]
        out[at + sub] = np.uint8(scale | ((high_scale >> 4) << 6))
        out[at + 4 + sub] = np.uint8(low | ((high_low >> 4) << 6))
        out[at + 8 + sub] = np.uint8((high_scale & 15) | ((high_low & 15) << 4))


@inline
def _pack_2(levels: NDArray[np.uint8], block: int, out: NDArray[np.uint8], at: int) -> None:
    """Levels 32 apart share a byte."""
    for part in range(2):
        for element in range(32):
            place = block * K + part * 128 + element
            a, b, c, d = levels[place], levels[place + 32], levels[place + 64], levels[place + 96]
            out[at + part * 32 + element] = a | b << 2 | c << 4 | d << 6


@inline
def _pack_4(levels: NDArray[np.uint8], block: int, out: NDArray[np.uint8], at: int) -> None:
    """The low nibbles of levels 32 apart share a byte."""
    for part in range(4):
        place, mask = block * K + part * 64, U8(15)
        low, high = load(levels, place, PART), load(levels, place + PART, PART)
        store(out, at + part * PART, (low & mask) | bits_to(high, 0, 4, U8(240)))


@inline
def _pack_5(levels: NDArray[np.uint8], block: int, out: NDArray[np.uint8], at: int) -> None:
    """The fifth bits precede the nibbles: those of levels 32 apart share a byte."""
    high = splat(U8(0), PART)
    for eighth in range(8):
        high = high | bits_to(load(levels, block * K + eighth * PART, PART), 4, eighth, U8(1 << eighth))
    store(out, at - PART, high)
    _pack_4(levels, block, out, at)


@inline_once
def _final_levels(
    x: Scratch, group: int, length: int, top: int, unit: Scratch, floor: Scratch, found: Scratch, room: int,
    levels: NDArray[np.uint8],
) -> None:  # fmt: skip
    """The levels requantized with the stored scales; where a stored scale is 0, the levels of the search, whose results for
    `room` sub-blocks `found` has."""
    scale = load(unit, group * LANES, LANES)
    low = load(floor, group * LANES, LANES)
    inverse = load(found, _INVERSE * room + group * LANES, LANES)
    searched_low = load(found, _LOW * room + group * LANES, LANES)
    nothing = scale == splat(F32(0), LANES)
    for element in range(length):
        place = (group * length + element) * LANES
        value = load(x, place, LANES)
        level = maximum(splat(I32(0), LANES), minimum(splat(I32(top), LANES), nearest_int((value + low) / scale)))
        level = select(nothing, affine_level(value, inverse, searched_low, top), level)
        store(levels, place, convert(level, np.uint8))


def _scale_writer(bits: int) -> Any:
    """The function that stores a batch's scales and gives each sub-block's dequantized scale and minimum."""
    at_d, at_dmin, at_scales = offsets(f"Q{bits}_K", "d", "dmin", "scales")
    block_bytes = TYPES[f"Q{bits}_K"].block_bytes
    per_block = 16 if bits == 2 else 8
    mask = 15 if bits == 2 else 63

    @inline_once
    def write(
        scales: Scratch, minimums: Scratch, units: Scratch, blocks: int,
        unit: Scratch, floor: Scratch, out: NDArray[np.uint8], at: int,
    ) -> None:  # fmt: skip
        for block in range(blocks):
            place = at + block * block_bytes
            half_d, half_dmin = float_to_half(units[block]), float_to_half(units[LANES + block])
            store_half(out, place + at_d, half_d)
            store_half(out, place + at_dmin, half_dmin)
            if bits == 2:
                for sub in range(per_block):
                    scale, low = scales[sub * LANES + block], minimums[sub * LANES + block]
                    out[place + at_scales + sub] = np.uint8(scale | (low << 4))
            else:
                _pack_6_bit_scales(scales, minimums, block, LANES, out, place + at_scales)
            unit_d, unit_dmin = half_to_float(half_d), half_to_float(half_dmin)
            for sub in range(per_block):
                unit[block * per_block + sub] = unit_d * F32(scales[sub * LANES + block] & mask)
                floor[block * per_block + sub] = unit_dmin * F32(minimums[sub * LANES + block] & mask)

    return write


_SCALE, _MINIMUM, _WEIGHT, _INVERSE, _LOW = range(5)
"""What is kept of each sub-block's search: scale and minimum, the sum of the weights (with importance only), and what
`affine_level` needs."""


def _group_searcher(bits: int, weighted: bool) -> Any:
    """The function that fits one group of sub-blocks. Its results go to `found`, five arrays by sub-block."""
    length = 16 if bits == 2 else 32
    room = LANES * K // length
    top = (1 << bits) - 1
    first_step, step, steps = (-0.9, 0.05, 36) if weighted else (-1.0, 0.1, 20) if bits == 4 else (-0.5, 0.1, 15)
    mean_absolute = bits == 2 and not weighted

    @inline_once
    def search(x: Scratch, importance: Scratch, spread: Scratch, group: int, weight: Scratch, found: Scratch) -> None:
        base, at = group * length * LANES, group * LANES
        if weighted:
            total = importance_weights(x, base, length, importance, spread, group, weight)
            store(found, _WEIGHT * room + at, total)
        else:
            _plain_weights(x, base, length, bits, weight)
        fit = affine_search(x, weight, base, length, top, first_step, step, steps, mean_absolute)
        store(found, _SCALE * room + at, fit[0])
        store(found, _MINIMUM * room + at, fit[1])
        store(found, _INVERSE * room + at, fit[2])
        store(found, _LOW * room + at, fit[3])

    return search


def _scale_quantizer(bits: int, weighted: bool) -> Any:
    """The function that quantizes the sub-blocks' scales and minimums of a batch: their levels, transposed, and the
    super-blocks' d and dmin, `LANES` of each."""
    per_block = 16 if bits == 2 else 8
    room = LANES * per_block
    scale_top = 15 if bits == 2 else 63

    @inline_once
    def quantize_scales(found: Scratch, blocks: int, transposed_scales: Scratch, levels: Scratch, units: Scratch) -> None:
        for kind in range(3 if weighted else 2):
            spread_out(advance(found, kind * room), blocks, per_block, advance(transposed_scales, kind * room))
        for kind in range(2):
            values, own_levels = advance(transposed_scales, kind * room), advance(levels, kind * room)
            if weighted:
                unit = positive_search(values, advance(transposed_scales, _WEIGHT * room), per_block, scale_top, own_levels)
            else:
                unit = _largest_scales(values, per_block, scale_top, own_levels)
            store(units, kind * LANES, unit)

    return quantize_scales


_PACK: Final = MappingProxyType({2: _pack_2, 4: _pack_4, 5: _pack_5})


def _quantizer(bits: int, weighted: bool) -> Any:
    """The quantizer of a type: `bits` per level, with an importance vector or without. The sub-block length, the trials and
    the format of the scales follow from these."""
    length = 16 if bits == 2 else 32
    per_block = K // length
    top = (1 << bits) - 1
    spread_factor = 1.0 if bits == 2 else 2.0
    block_bytes = TYPES[f"Q{bits}_K"].block_bytes
    (at_levels,) = offsets(f"Q{bits}_K", "qs")
    search, quantize_scales = _group_searcher(bits, weighted), _scale_quantizer(bits, weighted)
    write_scales = _scale_writer(bits)
    pack = _PACK[bits]
    batch_size, room, group_size = LANES * K, LANES * per_block, LANES * length
    found_size, transposed_size, levels_size, units_size = 5 * room, 3 * room, 2 * room, 2 * LANES
    starts, columns = np.arange(LANES) * length, np.arange(LANES) * LANES

    @kernel
    def rows(x: NDArray[np.float32], importance: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        source, given, packed = address(x, np.float32), address(importance, np.float32), address(out, np.uint8)
        count = x.size // K
        batch, xt = local(batch_size, np.float32), local(batch_size, np.float32)
        batch_importance, wt = local(batch_size, np.float32), local(batch_size, np.float32)
        transposed, levels = local(batch_size, np.uint8), local(batch_size, np.uint8)
        weight = local(group_size, np.float32)
        # By sub-block, in order.
        found, spread = local(found_size, np.float32), local(room, np.float32)
        unit, floor = local(room, np.float32), local(room, np.float32)
        # One super-block in each lane.
        transposed_scales, scale_levels = local(transposed_size, np.float32), local(levels_size, np.int32)
        units = local(units_size, np.float32)
        fill(transposed_scales, transposed_size, F32(0))
        for first in range(0, count, LANES):
            blocks = min(LANES, count - first)
            groups = group_count(blocks, per_block)
            gather_batch(source, x.size, first, count, batch)
            if weighted:
                gather_batch(given, importance.size, first, count, batch_importance)
                batch_spread(batch, spread_factor, per_block, spread)
            for group in range(groups):
                transpose_group(batch, group, starts, length, xt)
                if weighted:
                    transpose_group(batch_importance, group, starts, length, wt)
                search(xt, wt, spread, group, weight, found)
            quantize_scales(found, blocks, transposed_scales, scale_levels, units)
            minimums = advance(scale_levels, room)
            write_scales(scale_levels, minimums, units, blocks, unit, floor, packed, first * block_bytes)
            for group in range(groups):
                _final_levels(xt, group, length, top, unit, floor, found, room, transposed)
                untranspose_group(transposed, group, columns, length, levels)
            for block in range(blocks):
                pack(levels, block, packed, (first + block) * block_bytes + at_levels)

    return quantizer_of(rows, weighted)


# --- reading -------------------------------------------------------------------------------------------------------------

_Q2_SCALES, _Q2_LEVELS, _Q2_D, _Q2_MIN = offsets("Q2_K", "scales", "qs", "d", "dmin")
_Q4_D, _Q4_MIN, _Q4_SCALES, _Q4_LEVELS = offsets("Q4_K", "d", "dmin", "scales", "qs")
_Q5_HIGH, _Q5_LEVELS = offsets("Q5_K", "qh", "qs")


@inline
def _codes_2(weights: Any, offset: Any, part: Any) -> Any:
    levels = load(weights, offset + _Q2_LEVELS + part // 4 * PART, PART)
    return bits_from(levels, part % 4 * 2, U8(3))


@inline
def _quantized_scales_2(weights: Any, offset: Any) -> Any:
    return convert(load(weights, offset + _Q2_SCALES, 16) & U8(15), np.int16)


@inline
def _minimums_2(weights: Any, offset: Any) -> Any:
    return convert(load(weights, offset + _Q2_SCALES, 16) >> U8(4), np.int16)


@inline
def _codes_4(weights: Any, offset: Any, part: Any) -> Any:
    return bits_from(load(weights, offset + _Q4_LEVELS + part // 2 * PART, PART), part % 2 * 4, U8(15))


@inline
def _codes_5(weights: Any, offset: Any, part: Any) -> Any:
    low = bits_from(load(weights, offset + _Q5_LEVELS + part // 2 * PART, PART), part % 2 * 4, U8(15))
    return low | bits_to(load(weights, offset + _Q5_HIGH, PART), part, 4, U8(16))


# All codes of a block. A vector of Q2_K has four codes of each sub-block: of each 16 bytes, every word at another place. A
# vector of Q4_K and Q5_K has eight codes of each sub-block: half of each 16 bytes' words are low nibbles, half high ones.

_PLACES_4: Final = np.resize(np.array([0, 0, 4, 4], np.uint32), 16)
_PLACES_5: Final = (np.arange(16) // 2 - 4).astype(np.uint32)
_ORDER_45: Final = order_of_eights(
    8 * pair + 4 * high + 2 * side + high ^ odd
    for side in range(2) for odd in range(2) for pair in range(4) for high in range(2)
)  # fmt: skip
_four_first_sixteens = shuffle(*(i % 16 for i in range(64)))
_four_last_sixteens = shuffle(*(16 + i % 16 for i in range(64)))


@inline
def _wide_2(weights: Any, offset: Any) -> Any:
    return fourths(load(weights, offset + _Q2_LEVELS, 64))


@inline
def _with_swapped(first: Any, last: Any) -> Any:
    """Two vectors of bytes as words, each as it is and with the halves of each 16 bytes swapped."""
    a, b = reinterpret(first, np.uint32), reinterpret(last, np.uint32)
    return a, second_word(a, a), b, second_word(b, b)


@inline
def _wide_levels(weights: Any, place: Any) -> Any:
    """Nibbles with eight codes of each sub-block: four vectors."""
    first, second = load(weights, place, 64), load(weights, place + 64, 64)
    a, b, c, d = _with_swapped(first_sixteens(first, second), last_sixteens(first, second))
    low = U8(15)
    return (
        lane_fields(a, _PLACES_4, low),
        lane_fields(b, _PLACES_4, low),
        lane_fields(c, _PLACES_4, low),
        lane_fields(d, _PLACES_4, low),
    )


@inline
def _wide_4(weights: Any, offset: Any) -> Any:
    return _wide_levels(weights, offset + _Q4_LEVELS)


@inline
def _wide_5(weights: Any, offset: Any) -> Any:
    a, b, c, d = _wide_levels(weights, offset + _Q5_LEVELS)
    high, fifth = load(weights, offset + _Q5_HIGH, PART), U8(16)
    e, f, g, h = _with_swapped(_four_first_sixteens(high, high), _four_last_sixteens(high, high))
    return (
        a | moved_bits(e, _PLACES_5, fifth),
        b | moved_bits(f, _PLACES_5, fifth),
        c | moved_bits(g, _PLACES_5, fifth),
        d | moved_bits(h, _PLACES_5, fifth),
    )


@inline
def _sixes(whole: Any, split: Any, place: Any) -> Any:
    """Eight integers of six bits: four in the low bits of the bytes of `whole`, and four split between nibbles of `split`
    (low bits) and the top bits of `whole`."""
    first = whole & U32(0x3F3F3F3F)
    second = ((split >> U32(place)) & U32(0x0F0F0F0F)) | ((whole >> U32(2)) & U32(0x30303030))
    return eight_levels(pair_of_words(first, second))


# Twelve bytes hold 8 scales and 8 minimums of six bits. The bytes of the first four of each also have the top bits of the
# other four.


@inline
def _quantized_scales_45(weights: Any, offset: Any) -> Any:
    whole = load_scalar(weights, offset + _Q4_SCALES, np.uint32)
    split = load_scalar(weights, offset + _Q4_SCALES + 8, np.uint32)
    return _sixes(whole, split, 0)


@inline
def _minimums_45(weights: Any, offset: Any) -> Any:
    whole = load_scalar(weights, offset + _Q4_SCALES + 4, np.uint32)
    split = load_scalar(weights, offset + _Q4_SCALES + 8, np.uint32)
    return _sixes(whole, split, 4)


_SCALES_2: Final = IntegerScales(_quantized_scales_2, half_from(_Q2_D), _minimums_2, half_from(_Q2_MIN))
_SCALES_45: Final = IntegerScales(_quantized_scales_45, half_from(_Q4_D), _minimums_45, half_from(_Q4_MIN))

_READERS: Final = {
    2: with_integer_scales(_codes_2, _SCALES_2, group=16, wide=WideCodes(_wide_2, 0, FOURTHS)),
    4: with_integer_scales(_codes_4, _SCALES_45, group=32, wide=WideCodes(_wide_4, 0, _ORDER_45)),
    5: with_integer_scales(_codes_5, _SCALES_45, group=32, wide=WideCodes(_wide_5, 0, _ORDER_45)),
}

# --- writing codes -------------------------------------------------------------------------------------------------------


def _writer(bits: int) -> CodeWriter:
    (at_levels,), pack = offsets(f"Q{bits}_K", "qs"), _PACK[bits]

    @inline
    def store_codes(packed: NDArray[np.uint8], offset: int, codes: NDArray[np.uint8]) -> None:
        pack(codes, 0, packed, offset + at_levels)

    return CodeWriter(store_codes, range(1 << bits))


# --- scale fields --------------------------------------------------------------------------------------------------------


@inline
def _pack_scales_2(packed: NDArray[np.uint8], offset: int, scales: Scratch, minimums: Scratch) -> None:
    for sub in range(16):
        packed[offset + _Q2_SCALES + sub] = np.uint8(scales[sub] | (minimums[sub] << 4))


@inline
def _pack_scales_45(packed: NDArray[np.uint8], offset: int, scales: Scratch, minimums: Scratch) -> None:
    _pack_6_bit_scales(scales, minimums, 0, 1, packed, offset + _Q4_SCALES)


_SCALES_OF_4_AND_5: Final = integer_scales(
    _SCALES_45, 32, range(64), (_Q4_D, _Q4_MIN), _pack_scales_45, minimums=range(64)
)
_FIELDS: Final = {
    2: integer_scales(_SCALES_2, 16, range(16), (_Q2_D, _Q2_MIN), _pack_scales_2, minimums=range(16)),
    4: _SCALES_OF_4_AND_5,
    5: _SCALES_OF_4_AND_5,
}

CODECS: Final = MappingProxyType(
    {
        f"Q{bits}_K": Codec(_quantizer(bits, False), _quantizer(bits, True), reader, _writer(bits), _FIELDS[bits])
        for bits, reader in _READERS.items()
    }
)
