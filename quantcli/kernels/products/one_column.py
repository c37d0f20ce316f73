"""GEMV: products with one column, bound by memory bandwidth. Codes are unpacked in registers.

Everything here is inlined into the kernels of `matmul`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import SUPER_BLOCK, BlockType
from quantcli.kernels.blocks.reader import IntegerScales, PackedReader, PlainReader
from quantcli.kernels.half import half_to_float
from quantcli.kernels.jit import inline
from quantcli.kernels.products.activation_layout import PART, PLAIN, QUAD, Activations, Rounding, rounded
from quantcli.kernels.simd import (
    LANES,
    convert,
    dot_bytes,
    dot_pairs,
    dot_quads,
    fma,
    lane,
    load,
    load_scalar,
    local,
    machine_features,
    prefetch,
    reinterpret,
    shuffle,
    splat,
    store,
    sum_lanes,
)

_MAX_GROUPS: Final = 16
"""The most groups (sub-blocks) in a block."""

_LINE: Final = 64
_AHEAD: Final = 4096
"""Bytes of a cache line, and the software prefetch distance of weights. A row is read once, and the hardware prefetcher
stops at a page boundary. Weights from a mapped file were multiplied half as fast again as without prefetch. Distances of
1024 and 8192 were slower, and so was prefetching into L2 only."""

_RUN: Final = 4
_RUN_PAIRS: Final = _RUN // 2
_RUN_QUADS: Final = _RUN // 4
"""Small blocks whose scales are loaded together, pairs of them, and fours. With eight, Q8_0 stalled longer on memory."""

_ZERO = np.float32(0)
_NO_PRODUCT = np.int32(0)
_UNSIGNED_ONLY: Final = "avx512vnni" in machine_features()
"""Whether one instruction multiplies unsigned codes by signed ones, without the limit of 128; signed codes need more
instructions."""
_WIDE: Final = {"avx512f", "avx512vnni"} <= machine_features()
"""Whether one instruction multiplies 64 codes."""

_join_parts = shuffle(*range(2 * PART))


@dataclass(frozen=True, slots=True)
class RowProduct:
    """The `inline` functions of a type that the loop of `matmul` over rows calls.

    one(weights, offset, activations, n)   the dot product of the `n` weights from byte `offset` on, float32; `weights` and
                                           `activations` are addresses
    """

    activations: Activations
    one: Callable[..., Any]


def plain_product(reader: PlainReader, block_type: BlockType) -> RowProduct:
    """Floats times floats."""
    widen, widen_one, size = reader.widen, reader.widen_one, block_type.block_bytes

    @inline
    def one(weights: Any, offset: Any, activations: Any, n: Any) -> Any:
        (x,) = activations
        a = b = c = d = splat(_ZERO, LANES)
        i = 0
        while i + 4 * LANES <= n:
            for line in range(0, 4 * LANES * size, _LINE):
                prefetch(weights, offset + i * size + _AHEAD + line)
            a = fma(widen(weights, offset + i * size), load(x, i, LANES), a)
            b = fma(widen(weights, offset + (i + LANES) * size), load(x, i + LANES, LANES), b)
            c = fma(widen(weights, offset + (i + 2 * LANES) * size), load(x, i + 2 * LANES, LANES), c)
            d = fma(widen(weights, offset + (i + 3 * LANES) * size), load(x, i + 3 * LANES, LANES), d)
            i += 4 * LANES
        while i + LANES <= n:
            a = fma(widen(weights, offset + i * size), load(x, i, LANES), a)
            i += LANES
        total = sum_lanes((a + b) + (c + d))
        while i < n:
            total += widen_one(weights, offset + i * size) * lane(load(x, i, 1), 0)
            i += 1
        return total

    return RowProduct(PLAIN, one)


def span_of(block_type: BlockType) -> int:
    """The activations per scale, for weights of this type."""
    return SUPER_BLOCK if block_type.activation == "Q8_K" else PART


_TO_UNSIGNED = np.uint8(128)


def coded(reader: PackedReader) -> tuple[Callable[..., Any], int]:
    """A reader of codes in the signedness that the machine multiplies fastest, and the zero point (code of zero) it has."""
    codes_of = reader.codes

    @inline
    def unsigned(weights: Any, offset: Any, part: Any) -> Any:
        return reinterpret(codes_of(weights, offset, part), np.uint8) ^ _TO_UNSIGNED

    return (unsigned, 128) if reader.signed and _UNSIGNED_ONLY else (codes_of, reader.zero)


def packed_product(reader: PackedReader, block_type: BlockType) -> RowProduct:
    """Integer dot products of codes."""
    _, zero = coded(reader)
    if reader.integers is not None:
        distance = _pair_distance(reader)
        rounding = Rounding(span_of(block_type), reader.group, QUAD, 0, sums=True, whole=True, pair_distance=distance)
        return RowProduct(rounded(rounding), _row_of_integer_scales(reader, reader.integers, block_type))
    rounding = Rounding(span_of(block_type), reader.group, QUAD, zero, reader.minimums is not None)
    one = _row_of_small(reader, block_type) if block_type.block_length == PART else _row_of_large(reader, block_type)
    return RowProduct(rounded(rounding), one)


def _products(zero: int, lanes: int) -> Callable[..., Any]:
    """The inline function for dot products of four codes each, with the activations from `at` on, as float32."""
    has_starts, width = zero != 0, lanes * QUAD

    @inline
    def products(codes: Any, quants: Any, starts: Any, at: Any) -> Any:
        start = load(starts, at // QUAD, lanes) if has_starts else splat(_NO_PRODUCT, lanes)
        return convert(dot_quads(start, codes, load(quants, at, width)), np.float32)

    return products


def _row_of_small(reader: PackedReader, block_type: BlockType) -> Callable[..., Any]:
    """Blocks of one part with one scale: `_RUN` of them at once with a vector of scales, then the remainder of the row."""
    (codes_of, zero), width = coded(reader), 2 * PART if _WIDE else PART
    lanes, part_lanes, unit_blocks, units = width // QUAD, PART // QUAD, width // PART, _RUN * PART // width
    products, part_products = _products(zero, lanes), _products(zero, part_lanes)
    scales_of, minimums_of, has_minimums = reader.scales, reader.minimums or reader.scales, reader.minimums is not None
    block_bytes, run_bytes = block_type.block_bytes, _RUN * block_type.block_bytes
    scales_of_run = _of_run(reader.scales, reader.scale_half, block_bytes)
    minimums_of_run = _of_run(minimums_of, None, block_bytes)
    spread = shuffle(*(block for block in range(unit_blocks) for _ in range(part_lanes)))

    @inline
    def two_blocks(weights: Any, offset: Any, u: Any) -> Any:
        offset += 2 * u * block_bytes
        return _join_parts(codes_of(weights, offset, 0), codes_of(weights, offset + block_bytes, 0))

    @inline
    def one_block(weights: Any, offset: Any, u: Any) -> Any:
        return codes_of(weights, offset + u * block_bytes, 0)

    unit = one_block if width == PART else two_blocks

    @inline
    def add_unit(weights: Any, offset: Any, activations: Any, i: Any, u: Any, scales: Any, total: Any) -> Any:
        few = load(scales, u * unit_blocks, unit_blocks)
        dots = products(unit(weights, offset, u), activations[0], activations[2], i * PART + u * width)
        return fma(dots, spread(few, few), total)

    @inline
    def one(weights: Any, offset: Any, activations: Any, n: Any) -> Any:
        quants, x_scales, starts, sums = activations
        blocks, scales = n // PART, local(_RUN, np.float32)
        a = b = splat(_ZERO, lanes)
        rest, taken, rest_taken = splat(_ZERO, part_lanes), splat(_ZERO, _RUN), splat(_ZERO, 1)
        for i in range(0, blocks - _RUN + 1, _RUN):
            for line in range(0, run_bytes, _LINE):
                prefetch(weights, offset + _AHEAD + line)
            store(scales, 0, scales_of_run(weights, offset) * load(x_scales, i, _RUN))
            for u in range(0, units, 2):
                a = add_unit(weights, offset, activations, i, u, scales, a)
                b = add_unit(weights, offset, activations, i, u + 1, scales, b)
            if has_minimums:
                taken = fma(minimums_of_run(weights, offset), load(sums, i, _RUN), taken)
            offset += run_bytes
        for i in range(blocks - blocks % _RUN, blocks):
            scale = lane(scales_of(weights, offset) * load(x_scales, i, 1), 0)
            dots = part_products(codes_of(weights, offset, 0), quants, starts, i * PART)
            rest = fma(dots, splat(scale, part_lanes), rest)
            if has_minimums:
                rest_taken = fma(minimums_of(weights, offset), load(sums, i, 1), rest_taken)
            offset += block_bytes
        return sum_lanes(a + b) + sum_lanes(rest) - (sum_lanes(taken) + sum_lanes(rest_taken))

    return one


def _of_run(numbers_of: Callable[..., Any], half: int | None, block_bytes: int) -> Callable[..., Any]:
    """The inline function for one number (scale or minimum) of each of `_RUN` blocks.

    float16 numbers, at byte `half`, are cast to float32 as one vector. All are first assembled in words by the scalar
    units, which do not unpack codes meanwhile.
    """

    @inline
    def from_float16(weights: Any, offset: Any) -> Any:
        words = local(_RUN_QUADS, np.uint64)
        for word in range(_RUN_QUADS):
            bits = np.uint64(0)
            for block in range(4):
                place = offset + (4 * word + block) * block_bytes + half
                bits |= np.uint64(load_scalar(weights, place, np.uint16)) << np.uint64(16 * block)
            store(words, word, splat(bits, 1))
        return half_to_float(reinterpret(load(words, 0, _RUN_QUADS), np.uint16))

    @inline
    def numbers(weights: Any, offset: Any) -> Any:
        words = local(_RUN_PAIRS, np.uint64)
        for word in range(_RUN_PAIRS):
            place = offset + 2 * word * block_bytes
            low = lane(reinterpret(numbers_of(weights, place), np.uint32), 0)
            high = lane(reinterpret(numbers_of(weights, place + block_bytes), np.uint32), 0)
            store(words, word, splat(np.uint64(low) | np.uint64(high) << np.uint64(32), 1))
        return reinterpret(load(words, 0, _RUN_PAIRS), np.float32)

    return numbers if half is None else from_float16


def _row_of_large(reader: PackedReader, block_type: BlockType) -> Callable[..., Any]:
    """Blocks of several parts."""
    codes_of, zero = coded(reader)
    span, group, block, block_bytes = span_of(block_type), reader.group, block_type.block_length, block_type.block_bytes
    width = 2 * PART if _WIDE and span >= 2 * PART else PART
    lanes, spans, groups = width // QUAD, block // span, block // group
    scales_of, minimums_of, has_minimums = reader.scales, reader.minimums or reader.scales, reader.minimums is not None
    products, unit, unit_groups, units = _products(zero, lanes), _units(codes_of, width, 1), width // group, block // width
    spread = shuffle(*(group for group in range(unit_groups) for _ in range(lanes // unit_groups)))
    spread_spans = shuffle(*(group // (groups // spans) for group in range(groups)))

    @inline
    def one(weights: Any, offset: Any, activations: Any, n: Any) -> Any:
        quants, x_scales, starts, sums = activations
        scratch = local(_MAX_GROUPS, np.float32)
        a = b = splat(_ZERO, lanes)
        taken = splat(_ZERO, groups)
        for i in range(n // block):
            for line in range(0, block_bytes, _LINE):
                prefetch(weights, offset + _AHEAD + line)
            few = load(x_scales, i * spans, spans)
            store(scratch, 0, scales_of(weights, offset) * spread_spans(few, few))
            for u in range(0, units, 2):
                few = load(scratch, u * unit_groups, unit_groups)
                dots = products(unit(weights, offset, u), quants, starts, i * block + u * width)
                a = fma(dots, spread(few, few), a)
                few = load(scratch, (u + 1) * unit_groups, unit_groups)
                dots = products(unit(weights, offset, u + 1), quants, starts, i * block + (u + 1) * width)
                b = fma(dots, spread(few, few), b)
            if has_minimums:
                taken = fma(minimums_of(weights, offset), load(sums, i * groups, groups), taken)
            offset += block_bytes
        return sum_lanes(a + b) - sum_lanes(taken)

    return one


def _row_of_integer_scales(reader: PackedReader, integers: IntegerScales, block_type: BlockType) -> Callable[..., Any]:
    """Super-blocks with integer sub-block scales: products accumulate as integers and are cast to float once per block.
    The zero point is treated as a minimum: zero times the scale."""
    group, block, block_bytes = reader.group, block_type.block_length, block_type.block_bytes
    width = 2 * PART if _WIDE else PART
    lanes, groups, units, pair_distance = width // QUAD, block // group, block // width, _pair_distance(reader)
    unit, scales_of, scale_of = _units(reader.codes, width, pair_distance), integers.quantized_scales, integers.scale
    half, has_zero, zero = groups // 2, reader.zero != 0, np.float32(reader.zero)
    minimums_of, minimum_scale_of = integers.quantized_minimums or scales_of, integers.minimum_scale or scale_of
    part_groups, unit_parts = PART // group, width // PART
    spread = shuffle(*(pair * unit_parts * part_groups // (2 * lanes) for pair in range(2 * lanes)))

    @inline
    def one(weights: Any, offset: Any, activations: Any, n: Any) -> Any:
        quants, x_scales, _, sums = activations
        scratch = local(_MAX_GROUPS, np.int16)
        total, taken = splat(_ZERO, lanes), splat(_ZERO, half)
        for i in range(n // block):
            for line in range(0, block_bytes, _LINE):
                prefetch(weights, offset + _AHEAD + line)
            scales = scales_of(weights, offset)
            store(scratch, 0, scales)
            inner = splat(_NO_PRODUCT, lanes)
            for u in range(units):
                part = _first_part(u, unit_parts, pair_distance)
                first = load(scratch, part * part_groups, part_groups)
                second = load(scratch, (part + pair_distance) * part_groups, part_groups) if unit_parts == 2 else first
                pairs = dot_bytes(unit(weights, offset, u), load(quants, i * block + u * width, width))
                inner = inner + dot_pairs(pairs, spread(first, second))
            x_scale, scale = lane(load(x_scales, i, 1), 0), scale_of(weights, offset)
            total = fma(convert(inner, np.float32), splat(scale * x_scale, lanes), total)
            minimums = scales if has_zero else minimums_of(weights, offset)
            minimum_scale = scale * zero if has_zero else minimum_scale_of(weights, offset)
            products = convert(dot_pairs(minimums, load(sums, i * groups, groups)), np.float32)
            taken = fma(products, splat(minimum_scale * x_scale, half), taken)
            offset += block_bytes
        return sum_lanes(total) - sum_lanes(taken)

    return one


def _pair_distance(reader: PackedReader) -> int:
    """The distance of two parts that are multiplied together."""
    return reader.apart if _WIDE else 1


@inline
def _first_part(u: Any, parts: Any, pair_distance: Any) -> Any:
    """The first part of unit `u`, which is one part, or two at a distance of `pair_distance`."""
    return u if parts == 1 else u // pair_distance * 2 * pair_distance + u % pair_distance


def _units(codes_of: Callable[..., Any], width: int, pair_distance: int) -> Callable[..., Any]:
    """The inline function for codes of unit `u`, which is one part or two."""

    @inline
    def two_parts(weights: Any, offset: Any, u: Any) -> Any:
        part = _first_part(u, 2, pair_distance)
        return _join_parts(codes_of(weights, offset, part), codes_of(weights, offset, part + pair_distance))

    return codes_of if width == PART else two_parts
