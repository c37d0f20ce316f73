"""Q3_K, Q6_K: super-blocks of 256 weights in sixteen sub-blocks with a signed scale and no minimum, x ~ d * scale * l.

Batches as in `k_affine`. Source: `quantize_row_q{3,6}_K_ref` and `_impl` in `ggml-quants.c`.
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
    even_eights,
    fourths,
    half_from,
    lane_fields,
    last_word,
    moved_bits,
    next_word,
    odd_eights,
    offsets,
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
from quantcli.kernels.rounding.scale_search import TINY, block_extreme, descent_search, nearest_int, symmetric_search
from quantcli.kernels.shorthand import F32, I16, I32, U8, U32, U64, Scratch, Vec
from quantcli.kernels.simd import (
    LANES,
    address,
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
    store,
)

LENGTH: Final = 16
PER_BLOCK: Final = K // LENGTH
_Q3_HIGH, _Q3_LOW, _Q3_SCALES, _Q3_D = offsets("Q3_K", "hmask", "qs", "scales", "d")
_Q6_LOW, _Q6_HIGH, _Q6_SCALES, _Q6_D = offsets("Q6_K", "ql", "qh", "scales", "d")


@inline
def _clamped(value: Vec, half: int) -> Vec:
    """`nearest_int` clamped to -half..half-1, as int32 lanes."""
    return maximum(splat(I32(-half), LANES), minimum(splat(I32(half - 1), LANES), nearest_int(value)))


@inline_once
def _final_levels(x: Scratch, group: int, half: int, unit: Scratch, searched: Scratch, levels: NDArray[np.uint8]) -> None:
    """The stored levels, l + half, requantized with the stored scales; where a stored scale is 0, those of the search."""
    scale = load(unit, group * LANES, LANES)
    nothing = scale == splat(F32(0), LANES)
    for element in range(LENGTH):
        place = (group * LENGTH + element) * LANES
        level = convert(_clamped(load(x, place, LANES) / scale, half) + I32(half), np.uint8)
        store(levels, place, select(nothing, load(searched, place, LANES), level))


@inline_once
def _fitted_levels(x: Scratch, base: int, half: int, inverse: Vec, empty: Vec, searched: NDArray[np.uint8]) -> None:
    """The stored levels for a result of `symmetric_search`."""
    for element in range(LENGTH):
        place = base + element * LANES
        level = _clamped(inverse * load(x, place, LANES), half) + I32(half)
        store(searched, place, convert(select(empty, splat(I32(0), LANES), level), np.uint8))


@inline_once
def _extreme_scales(scales: Scratch, bits: int, stored: Scratch) -> tuple[Vec, Vec]:
    """Quantize the sub-blocks' scales of `LANES` super-blocks relative to the first of largest magnitude, which becomes -32
    in Q3_K and -128 in Q6_K. The levels, int32, go to `stored`; both are transposed. Returns the super-blocks' unit and the
    magnitude."""
    low, top = (-32, 31) if bits == 3 else (-128, 127)
    zero = splat(F32(0), LANES)
    extreme, largest = block_extreme(scales, 0, PER_BLOCK)
    inverse = splat(F32(low), LANES) / extreme
    for sub in range(PER_BLOCK):
        level = nearest_int(inverse * load(scales, sub * LANES, LANES))
        if bits == 3:
            # An int8 in llama.cpp: it wraps before it is clamped.
            level = convert(convert(level, np.int8), np.int32)
        level = maximum(splat(I32(low), LANES), minimum(splat(I32(top), LANES), level))
        store(stored, sub * LANES, select(extreme == zero, splat(I32(low), LANES), level))
    return select(extreme == zero, zero, splat(F32(1), LANES) / inverse), largest


# Q3_K: 3-bit levels, 6-bit scales


@inline_once
def _search_3(x: Scratch, group: int, descended: Scratch, searched: NDArray[np.uint8], scales: Scratch) -> None:
    """Coordinate descent without an importance matrix, for four groups from `group` on."""
    base = group * LENGTH * LANES
    found = descent_search(x, base, LENGTH, 4, descended)
    store(scales, group * LANES, found[0])
    store(scales, (group + 1) * LANES, found[1])
    store(scales, (group + 2) * LANES, found[2])
    store(scales, (group + 3) * LANES, found[3])
    for place in range(base, base + 4 * LENGTH * LANES, LANES):
        level = convert(load(descended, place, LANES), np.int32) + I32(4)
        store(searched, place, convert(level, np.uint8))


@inline_once
def _importance_scales_3(scale_t: Scratch, weights_t: Scratch, stored: Scratch) -> Vec:
    """Quantize the sub-blocks' scales to -32..31 by a weighted scale search. Returns the super-blocks' unit."""
    unit, inverse, empty = symmetric_search(scale_t, weights_t, 0, PER_BLOCK, 32, True)
    for sub in range(PER_BLOCK):
        level = _clamped(inverse * load(scale_t, sub * LANES, LANES), 32)
        store(stored, sub * LANES, select(empty, splat(I32(-32), LANES), level))
    return unit


@inline_once
def _pack_levels_3(levels: NDArray[np.uint8], block: int, out: NDArray[np.uint8], at: int) -> None:
    """hmask (bit 2 of levels 32 apart share a byte), qs (low two bits, likewise)."""
    first = block * K
    for element in range(32):
        high = np.uint8(0)
        for eighth in range(8):
            high |= levels[first + eighth * 32 + element] >> 2 << eighth
        out[at + _Q3_HIGH + element] = high
    for part in range(2):
        for element in range(32):
            place = first + part * 128 + element
            a, b, c, d = levels[place], levels[place + 32], levels[place + 64], levels[place + 96]
            out[at + _Q3_LOW + part * 32 + element] = (a & 3) | (b & 3) << 2 | (c & 3) << 4 | (d & 3) << 6


@inline
def _pack_6_bit_scales(scales: Scratch, block: int, stride: int, out: NDArray[np.uint8], at: int) -> None:
    """16 scales, -32..31, in twelve bytes. They lie `stride` apart from number `block` on."""
    for sub in range(8):
        a, b = scales[sub * stride + block] + 32, scales[(sub + 8) * stride + block] + 32
        out[at + sub] = np.uint8((a & 15) | ((b & 15) << 4))
    for sub in range(4):
        bits = 0
        for quarter in range(4):
            bits |= ((scales[(quarter * 4 + sub) * stride + block] + 32) >> 4) << (2 * quarter)
        out[at + 8 + sub] = np.uint8(bits)


@inline_once
def _pack_3(levels: NDArray[np.uint8], stored: Scratch, block: int, half: Any, out: NDArray[np.uint8], at: int) -> None:
    """The levels, twelve bytes of scales, d."""
    _pack_levels_3(levels, block, out, at)
    _pack_6_bit_scales(stored, block, LANES, out, at + _Q3_SCALES)
    store_half(out, at + _Q3_D, half)


# Q6_K: 6-bit levels, 8-bit scales


@inline_once
def _weights_6(x: Scratch, base: int, importance: Scratch, weighted: bool, weight: Scratch) -> None:
    """Error weights: x * x, or the importance itself."""
    for element in range(LENGTH):
        value = load(x, base + element * LANES, LANES)
        store(weight, element * LANES, load(importance, base + element * LANES, LANES) if weighted else value * value)


@inline_once
def _pack_levels_6(levels: NDArray[np.uint8], block: int, out: NDArray[np.uint8], at: int) -> None:
    """ql (low nibbles of levels 64 apart share a byte), qh (the high two bits of levels 32 apart)."""
    for part in range(2):
        for element in range(32):
            place = block * K + part * 128 + element
            a, b, c, d = levels[place], levels[place + 32], levels[place + 64], levels[place + 96]
            out[at + _Q6_LOW + part * 64 + element] = (a & 15) | (c & 15) << 4
            out[at + _Q6_LOW + part * 64 + 32 + element] = (b & 15) | (d & 15) << 4
            out[at + _Q6_HIGH + part * 32 + element] = (a >> 4) | (b >> 4 << 2) | (c >> 4 << 4) | (d >> 4 << 6)


@inline_once
def _pack_6(levels: NDArray[np.uint8], stored: Scratch, block: int, half: Any, out: NDArray[np.uint8], at: int) -> None:
    """The levels, scales, d."""
    _pack_levels_6(levels, block, out, at)
    for sub in range(PER_BLOCK):
        out[at + _Q6_SCALES + sub] = np.uint8(stored[sub * LANES + block] & 255)
    store_half(out, at + _Q6_D, half)


def _batch_searcher(bits: int, weighted: bool) -> Any:
    """The function that fits the groups of a batch. Their scales go to `found`, their stored levels to `searched`. For Q3_K
    with importance, the sums of their weights go to `totals`. `scratch` is as large as `x`."""
    half = 1 << (bits - 1)

    @inline_once
    def search(
        x: Scratch, importance: Scratch, spread: Scratch, groups: int, scratch: Scratch, searched: NDArray[np.uint8],
        found: Scratch, totals: Scratch,
    ) -> None:  # fmt: skip
        if bits == 3 and not weighted:
            # A batch has room for PER_BLOCK groups, filled or not: rounding up to fours stays inside.
            for group in range(0, groups, 4):
                _search_3(x, group, scratch, searched, found)
        else:
            for group in range(groups):
                base, at = group * LENGTH * LANES, group * LANES
                if bits == 3:
                    store(totals, at, importance_weights(x, base, LENGTH, importance, spread, group, scratch))
                else:
                    _weights_6(x, base, importance, weighted, scratch)
                scale, inverse, empty = symmetric_search(x, scratch, base, LENGTH, half, False)
                _fitted_levels(x, base, half, inverse, empty, searched)
                store(found, at, scale)

    return search


def _scale_quantizer(bits: int, weighted: bool) -> Any:
    """The function that quantizes the sub-blocks' scales of a batch. It gives their levels, transposed, the super-blocks'
    d, the magnitude of their largest scale, and each sub-block's dequantized scale."""

    @inline_once
    def quantize_scales(
        found: Scratch, totals: Scratch, blocks: int, transposed_scales: Scratch, transposed_totals: Scratch,
        stored: Scratch, d: Scratch,
        largest: Scratch, unit: Scratch,
    ) -> None:  # fmt: skip
        spread_out(found, blocks, PER_BLOCK, transposed_scales)
        if bits == 3 and weighted:
            spread_out(totals, blocks, PER_BLOCK, transposed_totals)
            store(d, 0, _importance_scales_3(transposed_scales, transposed_totals, stored))
        else:
            unit_d, magnitude = _extreme_scales(transposed_scales, bits, stored)
            store(d, 0, unit_d)
            store(largest, 0, magnitude)
        for block in range(blocks):
            stored_d = half_to_float(float_to_half(d[block]))
            for sub in range(PER_BLOCK):
                unit[block * PER_BLOCK + sub] = stored_d * F32(stored[sub * LANES + block])

    return quantize_scales


def _block_packer(bits: int) -> Any:
    """The function that packs one super-block."""
    block_bytes = TYPES[f"Q{bits}_K"].block_bytes

    @inline_once
    def pack(
        levels: NDArray[np.uint8], stored: Scratch, block: int, d: Any, largest: Any, out: NDArray[np.uint8], at: int
    ) -> None:
        if bits == 3:
            _pack_3(levels, stored, block, float_to_half(d), out, at)
        elif largest < TINY:
            for place in range(at, at + block_bytes):
                out[place] = 0
        else:
            _pack_6(levels, stored, block, float_to_half(d), out, at)

    return pack


_BATCH: Final = LANES * K
_SCALES: Final = LANES * PER_BLOCK


def _quantizer(bits: int, weighted: bool) -> Any:
    """The quantizer of a type: `bits` per level, with an importance vector or without."""
    half = 1 << (bits - 1)
    block_bytes = TYPES[f"Q{bits}_K"].block_bytes
    search, quantize_scales = _batch_searcher(bits, weighted), _scale_quantizer(bits, weighted)
    pack = _block_packer(bits)
    starts, columns = np.arange(LANES) * LENGTH, np.arange(LANES) * LANES

    @kernel
    def rows(x: NDArray[np.float32], importance: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        source, given, packed = address(x, np.float32), address(importance, np.float32), address(out, np.uint8)
        count = x.size // K
        batch, xt = local(_BATCH, np.float32), local(_BATCH, np.float32)
        batch_importance, wt = local(_BATCH, np.float32), local(_BATCH, np.float32)
        scratch = local(_BATCH, np.float32)
        searched, transposed, levels = local(_BATCH, np.uint8), local(_BATCH, np.uint8), local(_BATCH, np.uint8)
        # By sub-block, in order: scales and sums of weights; inputs and results of the search.
        found, totals = local(_SCALES, np.float32), local(_SCALES, np.float32)
        spread, unit = local(_SCALES, np.float32), local(_SCALES, np.float32)
        # One super-block in each lane.
        transposed_scales, transposed_totals = local(_SCALES, np.float32), local(_SCALES, np.float32)
        stored = local(_SCALES, np.int32)
        d, largest = local(LANES, np.float32), local(LANES, np.float32)
        fill(transposed_scales, _SCALES, F32(0))
        fill(transposed_totals, _SCALES, F32(0))
        for first in range(0, count, LANES):
            blocks = min(LANES, count - first)
            groups = group_count(blocks, PER_BLOCK)
            gather_batch(source, x.size, first, count, batch)
            if weighted:
                gather_batch(given, importance.size, first, count, batch_importance)
                batch_spread(batch, 2.0, PER_BLOCK, spread)
            for group in range(PER_BLOCK):
                transpose_group(batch, group, starts, LENGTH, xt)
                if weighted:
                    transpose_group(batch_importance, group, starts, LENGTH, wt)
            search(xt, wt, spread, groups, scratch, searched, found, totals)
            quantize_scales(found, totals, blocks, transposed_scales, transposed_totals, stored, d, largest, unit)
            for group in range(groups):
                _final_levels(xt, group, half, unit, searched, transposed)
                untranspose_group(transposed, group, columns, LENGTH, levels)
            for block in range(blocks):
                pack(levels, stored, block, d[block], largest[block], packed, (first + block) * block_bytes)

    return quantizer_of(rows, weighted)


# --- reading -------------------------------------------------------------------------------------------------------------

_join_eights = shuffle(*range(16))


@inline
def _codes_3(weights: Any, offset: Any, part: Any) -> Any:
    low = load(weights, offset + _Q3_LOW + part // 4 * PART, PART)
    high = load(weights, offset + _Q3_HIGH, PART)
    return bits_from(low, part % 4 * 2, U8(3)) | bits_to(high, part, 2, U8(4))


@inline
def _quantized_scales_3(weights: Any, offset: Any) -> Any:
    # 16 scales of six bits: the low four in 8 bytes (8 to 15 in their upper halves), the high two in 4 bytes.
    low = load_scalar(weights, offset + _Q3_SCALES, np.uint64)
    high = load_scalar(weights, offset + _Q3_SCALES + 8, np.uint32)
    two, four = U32(0x03030303), U64(0x0F0F0F0F0F0F0F0F)
    first = (low & four) | pair_of_words(high & two, (high >> U32(2)) & two) << U64(4)
    second = ((low >> U64(4)) & four) | pair_of_words((high >> U32(4)) & two, (high >> U32(6)) & two) << U64(4)
    return _join_eights(eight_levels(first), eight_levels(second)) - I16(32)


@inline
def _codes_6(weights: Any, offset: Any, part: Any) -> Any:
    half, quarter = part // 4, part % 4
    low = load(weights, offset + _Q6_LOW + half * 64 + quarter % 2 * PART, PART)
    high = load(weights, offset + _Q6_HIGH + half * PART, PART)
    return bits_from(low, quarter // 2 * 4, U8(15)) | bits_to(high, quarter * 2, 4, U8(48))


@inline
def _quantized_scales_6(weights: Any, offset: Any) -> Any:
    return convert(reinterpret(load(weights, offset + _Q6_SCALES, 16), np.int8), np.int16)


# All codes of a block. A vector has four codes of each of the 16 sub-blocks: of each 16 bytes, every word at another place
# (Q3_K), or two low nibbles of each half and two high ones (Q6_K).

_HIGH_PLACES_3: Final = np.array([4 * (i // 8) + i % 4 - 2 for i in range(16)], np.int32).view(np.uint32)
_PLACES_6: Final = np.resize(np.array([0, 4], np.uint32), 16)
_HIGH_PLACES_6: Final = np.array([4 * (i % 2) + 2 * (i // 8) - 4 for i in range(16)], np.int32).view(np.uint32)
_ORDER_6: Final = tuple(
    32 * half + 16 * high + 4 * sixteen + 2 * side + high ^ odd
    for side in range(2) for odd in range(2) for sixteen in range(4) for half in range(2) for high in range(2)
)  # fmt: skip
_other_word = shuffle(*(i ^ 1 for i in range(16)))
_both_halves = shuffle(*(i % 32 for i in range(64)))
_even_pairs, _odd_pairs = (
    shuffle(*(8 * (i // 2 % 2) + 4 * (i // 4 % 2) + 2 * odd + i % 2 for i in range(16))) for odd in range(2)
)


@inline
def _wide_3(weights: Any, offset: Any) -> Any:
    high, third = load(weights, offset + _Q3_HIGH, PART), U8(4)
    a, b, c, d = fourths(load(weights, offset + _Q3_LOW, 64))
    e = reinterpret(_both_halves(high, high), np.uint32)
    return (
        a | moved_bits(e, _HIGH_PLACES_3, third),
        b | moved_bits(next_word(e, e), _HIGH_PLACES_3, third),
        c | moved_bits(second_word(e, e), _HIGH_PLACES_3, third),
        d | moved_bits(last_word(e, e), _HIGH_PLACES_3, third),
    )


@inline
def _wide_6(weights: Any, offset: Any) -> Any:
    first, second = load(weights, offset + _Q6_LOW, 64), load(weights, offset + _Q6_LOW + 64, 64)
    high, four, two = reinterpret(load(weights, offset + _Q6_HIGH, 64), np.uint32), U8(15), U8(48)
    a, c = reinterpret(even_eights(first, second), np.uint32), reinterpret(odd_eights(first, second), np.uint32)
    b, d = _other_word(a, a), _other_word(c, c)
    e, g = _even_pairs(high, high), _odd_pairs(high, high)
    f, h = _other_word(e, e), _other_word(g, g)
    return (
        lane_fields(a, _PLACES_6, four) | moved_bits(e, _HIGH_PLACES_6, two),
        lane_fields(b, _PLACES_6, four) | moved_bits(f, _HIGH_PLACES_6, two),
        lane_fields(c, _PLACES_6, four) | moved_bits(g, _HIGH_PLACES_6, two),
        lane_fields(d, _PLACES_6, four) | moved_bits(h, _HIGH_PLACES_6, two),
    )


_WIDE_3: Final = WideCodes(_wide_3, 4, FOURTHS)
_WIDE_6: Final = WideCodes(_wide_6, 32, _ORDER_6)

_SCALES_3: Final = IntegerScales(_quantized_scales_3, half_from(_Q3_D))
_SCALES_6: Final = IntegerScales(_quantized_scales_6, half_from(_Q6_D))

_READERS: Final = {
    3: with_integer_scales(_codes_3, _SCALES_3, group=LENGTH, zero=4, wide=_WIDE_3),
    6: with_integer_scales(_codes_6, _SCALES_6, group=LENGTH, zero=32, wide=_WIDE_6),
}

# --- writing codes -------------------------------------------------------------------------------------------------------


def _writer(bits: int, pack: Any) -> CodeWriter:
    @inline
    def store_codes(packed: NDArray[np.uint8], offset: int, codes: NDArray[np.uint8]) -> None:
        pack(codes, 0, packed, offset)

    return CodeWriter(store_codes, range(1 << bits))


_WRITERS: Final = {3: _writer(3, _pack_levels_3), 6: _writer(6, _pack_levels_6)}

# --- scale fields --------------------------------------------------------------------------------------------------------


@inline
def _pack_scales_3(packed: NDArray[np.uint8], offset: int, scales: Scratch, minimums: Scratch) -> None:
    _pack_6_bit_scales(scales, 0, 1, packed, offset + _Q3_SCALES)


@inline
def _pack_scales_6(packed: NDArray[np.uint8], offset: int, scales: Scratch, minimums: Scratch) -> None:
    for sub in range(PER_BLOCK):
        packed[offset + _Q6_SCALES + sub] = np.uint8(scales[sub] & 255)


_FIELDS: Final = {
    3: integer_scales(_SCALES_3, LENGTH, range(-32, 32), (_Q3_D,), _pack_scales_3),
    6: integer_scales(_SCALES_6, LENGTH, range(-128, 128), (_Q6_D,), _pack_scales_6),
}

CODECS: Final = MappingProxyType(
    {
        f"Q{bits}_K": Codec(_quantizer(bits, False), _quantizer(bits, True), reader, _WRITERS[bits], _FIELDS[bits])
        for bits, reader in _READERS.items()
    }
)
