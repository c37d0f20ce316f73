"""GEMV, and products with a few columns. One column is bound by memory bandwidth. Codes are unpacked in registers, once for
all columns.

The accumulators of the columns are `local` arrays. All loops over columns have constant bounds, so LLVM unrolls them and
keeps the arrays in registers.

Everything here is inlined into the kernels of `matmul`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import SUPER_BLOCK, BlockType
from quantcli.kernels.blocks.packed_fields import join_halves
from quantcli.kernels.blocks.reader import MAX_GROUPS, IntegerScales, PackedReader, PlainReader, WideCodes
from quantcli.kernels.half import half_to_float
from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.products.activation_layout import (
    PART,
    QUAD,
    STRETCH,
    Activations,
    Rounding,
    floats,
    place_of,
    rounded,
)
from quantcli.kernels.products.prefetching import AHEAD, prefetch_bytes
from quantcli.kernels.products.wide_rows import wide_rows
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
    reinterpret,
    shuffle,
    splat,
    store,
    sum_lanes,
)

FEW: Final = (1, 2, 4, 8)
"""The numbers of columns that have a kernel of their own, 8 only for types whose codes are unpacked 256 at a time. Others
take that of the next number. With more columns, tiles are as fast."""

_RUN: Final = 4
"""Small blocks whose scales are loaded together. With eight, Q8_0 stalled longer on memory."""

_ZERO = np.float32(0)
_NO_PRODUCT = np.int32(0)
_UNSIGNED_ONLY: Final = "avx512vnni" in machine_features()
"""Whether one instruction multiplies unsigned codes by signed ones, without the limit of 128; signed codes need more
instructions."""
_WIDE: Final = {"avx512f", "avx512vnni"} <= machine_features()
"""Whether one instruction multiplies 64 codes."""
_BYTES_TO_WORDS: Final = "dotprod" in machine_features()
"""Whether an instruction of ARM adds up products of bytes as int32. Then products are scaled as floats: int16 products of
pairs, which integer scales multiply, take more instructions."""


@dataclass(frozen=True, slots=True)
class RowProduct:
    """The functions of a type that the loop of `matmul` over rows calls.

    counts         the numbers of columns that have a kernel of their own, ascending
    rows(columns)  an `inline` function (weights, row_bytes, start, end, activations, n, out): the dot products of rows
                   `start` to `end` - 1 with that many columns, of which `out`, float32 (columns, rows), may have fewer.
                   A row is `n` weights; the others are addresses
    """

    counts: tuple[int, ...]
    activations: Activations
    rows: Callable[[int], Callable[..., None]]


def _one_by_one(row: Callable[..., Callable[..., None]], *how: Any) -> Callable[[int], Callable[..., None]]:
    """`RowProduct.rows` from the function for one row: (weights, offset, activations, n, sums)."""

    def rows_of(columns: int) -> Callable[..., None]:
        one = row(*how, columns)

        @inline_once
        def rows(weights: Any, row_bytes: Any, start: Any, end: Any, activations: Any, n: Any, out: Any) -> None:
            sums = local(columns, np.float32)
            for number in range(start, end):
                one(weights, number * row_bytes, activations, n, sums)
                for column in range(out.shape[0]):
                    out[column, number] = sums[column]

        return rows

    return rows_of


def plain_product(reader: PlainReader, block_type: BlockType) -> RowProduct:
    """Floats times floats."""
    return RowProduct(FEW[:3], floats(block_type), _one_by_one(_row_of_floats, reader, block_type))


def _row_of_floats(reader: PlainReader, block_type: BlockType, columns: int) -> Callable[..., None]:
    widen, widen_one, size = reader.widen, reader.widen_one, block_type.block_bytes
    # Independent sums hide the latency of additions: four of one column, or one of each of many.
    chains = max(4 // columns, 1)
    step, all_chains = chains * LANES, columns * chains * LANES

    @inline
    def add_vector(weights: Any, offset: Any, x: Any, i: Any, n: Any, chain: Any, totals: Any) -> None:
        value, panel = widen(weights, offset + i * size), i // STRETCH * STRETCH
        width = min(STRETCH, n - panel)
        for c in range(columns):
            at = (c * chains + chain) * LANES
            number = load(x, place_of(panel, c, columns, width) + i - panel, LANES)
            store(totals, at, fma(value, number, load(totals, at, LANES)))

    @inline_once
    def row(weights: Any, offset: Any, activations: Any, n: Any, sums: Any) -> None:
        (x,) = activations
        totals = local(all_chains, np.float32)
        for chain in range(columns * chains):
            store(totals, chain * LANES, splat(_ZERO, LANES))
        i = 0
        while i + step <= n:
            prefetch_bytes(weights, offset + i * size + AHEAD, step * size)
            for chain in range(chains):
                add_vector(weights, offset, x, i + chain * LANES, n, chain, totals)
            i += step
        while i + LANES <= n:
            add_vector(weights, offset, x, i, n, 0, totals)
            i += LANES
        for c in range(columns):
            total = load(totals, c * step, LANES)
            for chain in range(1, chains):
                total = total + load(totals, c * step + chain * LANES, LANES)
            sums[c] = sum_lanes(total)
        panel = n // STRETCH * STRETCH
        while i < n:
            value = widen_one(weights, offset + i * size)
            for c in range(columns):
                sums[c] += value * lane(load(x, place_of(panel, c, columns, n - panel) + i - panel, 1), 0)
            i += 1

    return row


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
    integers = reader.integers
    if _WIDE and reader.wide is not None:
        return _wide_product(reader, reader.wide, block_type)
    if integers is not None and not _BYTES_TO_WORDS:
        rounding = Rounding(span_of(block_type), reader.group, QUAD, 0, sums=True, whole=True)
        return RowProduct(FEW[:3], rounded(rounding), _one_by_one(_row_of_integer_scales, reader, integers, block_type))
    rounding = Rounding(span_of(block_type), reader.group, QUAD, zero, reader.minimums is not None)
    row = _row_of_small if block_type.block_length == PART else _row_of_large
    return RowProduct(FEW[:3], rounded(rounding), _one_by_one(row, reader, block_type))


def _wide_product(reader: PackedReader, wide: WideCodes, block_type: BlockType) -> RowProduct:
    """Integer dot products of codes that are unpacked 256 at a time."""
    span, group, order, block_bytes = span_of(block_type), reader.group, wide.order, block_type.block_bytes
    scales_of, minimums_of = reader.scales, reader.minimums
    if block_type.block_length == PART:
        scales_of = _of_run(scales_of, reader.scale_half, block_bytes, STRETCH // PART)
        minimums_of = minimums_of and _of_run(minimums_of, None, block_bytes, STRETCH // PART)
    activations = rounded(Rounding(span, group, QUAD, wide.zero, minimums_of is not None, order=order))
    rest = _remainder(reader, scale_step=2)
    return RowProduct(FEW, activations, partial(wide_rows, wide, group, scales_of, minimums_of, rest, block_type))


def _products(zero: int, lanes: int) -> Callable[..., Any]:
    """The inline function for dot products of four codes each, with the activations from `at` on, as float32."""
    has_starts, width = zero != 0, lanes * QUAD

    @inline
    def products(codes: Any, quants: Any, starts: Any, at: Any) -> Any:
        start = load(starts, at // QUAD, lanes) if has_starts else splat(_NO_PRODUCT, lanes)
        return convert(dot_quads(start, codes, load(quants, at, width)), np.float32)

    return products


def _row_of_small(reader: PackedReader, block_type: BlockType, columns: int) -> Callable[..., None]:
    """Blocks of one part with one scale: `_RUN` of them at once with a vector of scales, then the remainder of the row."""
    (codes_of, zero), width = coded(reader), 2 * PART if _WIDE else PART
    lanes, part_lanes, unit_blocks, units = width // QUAD, PART // QUAD, width // PART, _RUN * PART // width
    products, add_rest, has_minimums = _products(zero, lanes), _remainder(reader), reader.minimums is not None
    block_bytes, run_bytes = block_type.block_bytes, _RUN * block_type.block_bytes
    scales_of_run = _of_run(reader.scales, reader.scale_half, block_bytes, _RUN)
    minimums_of_run = _of_run(reader.minimums or reader.scales, None, block_bytes, _RUN)
    spread = shuffle(*(block for block in range(unit_blocks) for _ in range(part_lanes)))
    unit = _units_of_blocks(codes_of, width, block_bytes)
    place_of_block = _places_of_blocks(PART, columns)
    all_lanes, all_runs, all_part_lanes = columns * 2 * lanes, columns * _RUN, columns * part_lanes

    @inline_once
    def add_run(weights: Any, offset: Any, activations: Any, i: Any, n: Any, scratch: Any, totals: Any) -> None:
        quants, x_scales, starts, _ = activations
        scales = scales_of_run(weights, offset)
        for c in range(columns):
            store(scratch, c * _RUN, scales * load(x_scales, place_of_block(i, c, n) // PART, _RUN))
        for u in range(units):
            codes = unit(weights, offset, u)
            for c in range(columns):
                few = load(scratch, c * _RUN + u * unit_blocks, unit_blocks)
                dots = products(codes, quants, starts, place_of_block(i, c, n) + u * width)
                at = (2 * c + u % 2) * lanes
                store(totals, at, fma(dots, spread(few, few), load(totals, at, lanes)))

    @inline_once
    def row(weights: Any, offset: Any, activations: Any, n: Any, results: Any) -> None:
        sums, blocks, scratch = activations[3], n // PART, local(all_runs, np.float32)
        totals, taken = local(all_lanes, np.float32), local(all_runs, np.float32)
        rest, rest_taken = local(all_part_lanes, np.float32), local(columns, np.float32)
        for c in range(columns):
            store(totals, 2 * c * lanes, splat(_ZERO, lanes))
            store(totals, (2 * c + 1) * lanes, splat(_ZERO, lanes))
            store(taken, c * _RUN, splat(_ZERO, _RUN))
            store(rest, c * part_lanes, splat(_ZERO, part_lanes))
            store(rest_taken, c, splat(_ZERO, 1))
        for i in range(0, blocks - _RUN + 1, _RUN):
            prefetch_bytes(weights, offset + AHEAD, run_bytes)
            add_run(weights, offset, activations, i, n, scratch, totals)
            if has_minimums:
                minimums = minimums_of_run(weights, offset)
                for c in range(columns):
                    own = load(sums, place_of_block(i, c, n) // PART, _RUN)
                    store(taken, c * _RUN, fma(minimums, own, load(taken, c * _RUN, _RUN)))
            offset += run_bytes
        for i in range(blocks - blocks % _RUN, blocks):
            for c in range(columns):
                add_rest(weights, offset, activations, place_of_block(i, c, n), c, rest, rest_taken)
            offset += block_bytes
        for c in range(columns):
            total = sum_lanes(load(totals, 2 * c * lanes, lanes) + load(totals, (2 * c + 1) * lanes, lanes))
            subtracted = sum_lanes(load(taken, c * _RUN, _RUN)) + lane(load(rest_taken, c, 1), 0)
            results[c] = total + sum_lanes(load(rest, c * part_lanes, part_lanes)) - subtracted

    return row


def _units_of_blocks(codes_of: Callable[..., Any], width: int, block_bytes: int) -> Callable[..., Any]:
    """The inline function for codes of unit `u`, which is one small block or two."""

    @inline
    def two_blocks(weights: Any, offset: Any, u: Any) -> Any:
        offset += 2 * u * block_bytes
        return join_halves(codes_of(weights, offset, 0), codes_of(weights, offset + block_bytes, 0))

    @inline
    def one_block(weights: Any, offset: Any, u: Any) -> Any:
        return codes_of(weights, offset + u * block_bytes, 0)

    return one_block if width == PART else two_blocks


def _remainder(reader: PackedReader, scale_step: int = 1) -> Callable[..., None]:
    """The `inline` function that adds a single small block's products with one column. The scales of the activations are
    `scale_step` apart."""
    (codes_of, zero), lanes = coded(reader), PART // QUAD
    scales_of, minimums_of, has_minimums = reader.scales, reader.minimums or reader.scales, reader.minimums is not None
    products = _products(zero, lanes)

    @inline
    def add_rest(weights: Any, offset: Any, activations: Any, place: Any, c: Any, rest: Any, rest_taken: Any) -> None:
        quants, x_scales, starts, sums = activations
        scale = lane(scales_of(weights, offset) * load(x_scales, place // PART * scale_step, 1), 0)
        dots, at = products(codes_of(weights, offset, 0), quants, starts, place), c * lanes
        store(rest, at, fma(dots, splat(scale, lanes), load(rest, at, lanes)))
        if has_minimums:
            taken = fma(minimums_of(weights, offset), load(sums, place // PART, 1), load(rest_taken, c, 1))
            store(rest_taken, c, taken)

    return add_rest


def _of_run(numbers_of: Callable[..., Any], half: int | None, block_bytes: int, run: int) -> Callable[..., Any]:
    """The inline function for one number (scale or minimum) of each of `run` blocks.

    float16 numbers, at byte `half`, are cast to float32 as one vector. All are first assembled in words by the scalar
    units, which do not unpack codes meanwhile.
    """
    pairs, fours = run // 2, run // 4

    @inline
    def from_float16(weights: Any, offset: Any) -> Any:
        words = local(fours, np.uint64)
        for word in range(fours):
            bits = np.uint64(0)
            for block in range(4):
                place = offset + (4 * word + block) * block_bytes + half
                bits |= np.uint64(load_scalar(weights, place, np.uint16)) << np.uint64(16 * block)
            store(words, word, splat(bits, 1))
        return half_to_float(reinterpret(load(words, 0, fours), np.uint16))

    @inline
    def numbers(weights: Any, offset: Any) -> Any:
        words = local(pairs, np.uint64)
        for word in range(pairs):
            place = offset + 2 * word * block_bytes
            low = lane(reinterpret(numbers_of(weights, place), np.uint32), 0)
            high = lane(reinterpret(numbers_of(weights, place + block_bytes), np.uint32), 0)
            store(words, word, splat(np.uint64(low) | np.uint64(high) << np.uint64(32), 1))
        return reinterpret(load(words, 0, pairs), np.float32)

    return numbers if half is None else from_float16


def _row_of_large(reader: PackedReader, block_type: BlockType, columns: int) -> Callable[..., None]:
    """Blocks of several parts."""
    codes_of, zero = coded(reader)
    span, group, block, block_bytes = span_of(block_type), reader.group, block_type.block_length, block_type.block_bytes
    width = 2 * PART if _WIDE and span >= 2 * PART else PART
    lanes, spans, groups = width // QUAD, block // span, block // group
    scales_of, minimums_of, has_minimums = reader.scales, reader.minimums or reader.scales, reader.minimums is not None
    products, unit, unit_groups, units = _products(zero, lanes), _units(codes_of, width), width // group, block // width
    spread = shuffle(*(group for group in range(unit_groups) for _ in range(lanes // unit_groups)))
    spread_spans = shuffle(*(group // (groups // spans) for group in range(groups)))
    place_of_block = _places_of_blocks(block, columns)
    all_scales, all_lanes, all_groups = columns * MAX_GROUPS, columns * 2 * lanes, columns * groups

    @inline_once
    def row(weights: Any, offset: Any, activations: Any, n: Any, results: Any) -> None:
        quants, x_scales, starts, sums = activations
        scratch = local(all_scales, np.float32)
        # Even and odd units: two independent chains of additions.
        totals, taken = local(all_lanes, np.float32), local(all_groups, np.float32)
        for c in range(columns):
            store(totals, 2 * c * lanes, splat(_ZERO, lanes))
            store(totals, (2 * c + 1) * lanes, splat(_ZERO, lanes))
            store(taken, c * groups, splat(_ZERO, groups))
        for i in range(n // block):
            prefetch_bytes(weights, offset + AHEAD, block_bytes)
            scales = scales_of(weights, offset)
            for c in range(columns):
                few = load(x_scales, place_of_block(i, c, n) // span, spans)
                store(scratch, c * MAX_GROUPS, scales * spread_spans(few, few))
            for u in range(units):
                codes = unit(weights, offset, u)
                for c in range(columns):
                    few = load(scratch, c * MAX_GROUPS + u * unit_groups, unit_groups)
                    dots = products(codes, quants, starts, place_of_block(i, c, n) + u * width)
                    at = (2 * c + u % 2) * lanes
                    store(totals, at, fma(dots, spread(few, few), load(totals, at, lanes)))
            if has_minimums:
                minimums = minimums_of(weights, offset)
                for c in range(columns):
                    own = load(sums, place_of_block(i, c, n) // group, groups)
                    store(taken, c * groups, fma(minimums, own, load(taken, c * groups, groups)))
            offset += block_bytes
        for c in range(columns):
            total = load(totals, 2 * c * lanes, lanes) + load(totals, (2 * c + 1) * lanes, lanes)
            results[c] = sum_lanes(total) - sum_lanes(load(taken, c * groups, groups))

    return row


def _places_of_blocks(block: int, columns: int) -> Callable[..., Any]:
    """The `inline` function (i, column, n) -> where the activations of a row's block `i` begin."""

    @inline
    def place_of_block(i: Any, column: Any, n: Any) -> Any:
        if columns == 1 or block == STRETCH:
            return (i * columns + column) * block
        panel = i * block // STRETCH * STRETCH
        return place_of(panel, column, columns, min(STRETCH, n - panel)) + i * block - panel

    return place_of_block


def _row_of_integer_scales(
    reader: PackedReader, integers: IntegerScales, block_type: BlockType, columns: int
) -> Callable[..., None]:
    """Super-blocks with integer sub-block scales: products accumulate as integers and are cast to float once per block.
    The zero point is treated as a minimum: zero times the scale."""
    group, block, block_bytes = reader.group, block_type.block_length, block_type.block_bytes
    lanes, groups, parts, part_groups = PART // QUAD, block // group, block // PART, PART // group
    codes_of, scales_of, scale_of = reader.codes, integers.quantized_scales, integers.scale
    half, has_zero, zero = groups // 2, reader.zero != 0, np.float32(reader.zero)
    minimums_of, minimum_scale_of = integers.quantized_minimums or scales_of, integers.minimum_scale or scale_of
    spread = shuffle(*(pair * part_groups // (2 * lanes) for pair in range(2 * lanes)))
    all_lanes, all_halves = columns * lanes, columns * half

    @inline_once
    def add_parts(weights: Any, offset: Any, scratch: Any, quants: Any, i: Any, inner: Any) -> None:
        for c in range(columns):
            store(inner, c * lanes, splat(_NO_PRODUCT, lanes))
        for part in range(parts):
            few = load(scratch, part * part_groups, part_groups)
            codes, scales = codes_of(weights, offset, part), spread(few, few)
            for c in range(columns):
                pairs = dot_bytes(codes, load(quants, (i * columns + c) * block + part * PART, PART))
                store(inner, c * lanes, load(inner, c * lanes, lanes) + dot_pairs(pairs, scales))

    @inline_once
    def row(weights: Any, offset: Any, activations: Any, n: Any, results: Any) -> None:
        quants, x_scales, _, sums = activations
        scratch, inner = local(MAX_GROUPS, np.int16), local(all_lanes, np.int32)
        totals, taken = local(all_lanes, np.float32), local(all_halves, np.float32)
        for c in range(columns):
            store(totals, c * lanes, splat(_ZERO, lanes))
            store(taken, c * half, splat(_ZERO, half))
        for i in range(n // block):
            prefetch_bytes(weights, offset + AHEAD, block_bytes)
            scales = scales_of(weights, offset)
            store(scratch, 0, scales)
            add_parts(weights, offset, scratch, quants, i, inner)
            scale = scale_of(weights, offset)
            minimums = scales if has_zero else minimums_of(weights, offset)
            minimum_scale = scale * zero if has_zero else minimum_scale_of(weights, offset)
            for c in range(columns):
                x_scale, at = lane(load(x_scales, i * columns + c, 1), 0), c * lanes
                dots = convert(load(inner, at, lanes), np.float32)
                store(totals, at, fma(dots, splat(scale * x_scale, lanes), load(totals, at, lanes)))
                products = convert(dot_pairs(minimums, load(sums, (i * columns + c) * groups, groups)), np.float32)
                at = c * half
                store(taken, at, fma(products, splat(minimum_scale * x_scale, half), load(taken, at, half)))
            offset += block_bytes
        for c in range(columns):
            results[c] = sum_lanes(load(totals, c * lanes, lanes)) - sum_lanes(load(taken, c * half, half))

    return row


def _units(codes_of: Callable[..., Any], width: int) -> Callable[..., Any]:
    """The inline function for codes of unit `u`, which is one part or two."""

    @inline
    def two_parts(weights: Any, offset: Any, u: Any) -> Any:
        return join_halves(codes_of(weights, offset, 2 * u), codes_of(weights, offset, 2 * u + 1))

    return codes_of if width == PART else two_parts
