"""Dot products of a row of weights with one activation column, or with `COLUMNS` of them at once.

Plain types multiply floats. Packed types multiply integers: activations are rounded to int8 first, with one scale for 32 of
them where the type's partner is Q8_0 or Q8_1 (the scale a half, as in those blocks), one for 256 where it is Q8_K. They are
kept as arrays of codes, of scales, and of sums times scale, which is what a type's minimums are multiplied by.

Everything here is inlined into the kernels of `matmul`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from quantcli.kernels.dots import PackedDot, PlainDot
from quantcli.kernels.half import float_to_half, half_to_float
from quantcli.kernels.jit import inline
from quantcli.kernels.simd import (
    LANES,
    absolute,
    convert,
    dot_quads,
    fma,
    lane,
    load,
    machine_features,
    max_lanes,
    maximum,
    prefetch,
    rint,
    shuffle,
    splat,
    store,
    sum_lanes,
)
from quantcli.kernels.types import SUPER_BLOCK, BlockType

COLUMNS: Final = 4
"""Columns that share a register's worth of unpacked weights."""

PART: Final = 32
"""Weights in a vector of codes."""

MAX_GROUPS: Final = 16
"""Groups of weights with a scale of their own in a block, at most."""

_LINE: Final = 64
_AHEAD: Final = 2048
"""Bytes of a cache line, and how far before their use weights are asked for: a row is read once, and what the machine
fetches ahead by itself ends at a page."""

_ZERO = np.float32(0)
_NO_PRODUCT = np.int32(0)
_LARGEST_CODE = np.float32(127)
_WIDE_INTEGERS: Final = {"avx512f", "avx512vnni"} <= machine_features()
"""Whether the machine multiplies 64 codes at once."""

_join_parts = shuffle(*range(2 * PART))


@dataclass(frozen=True, slots=True)
class Product:
    """The `inline` functions of a type that the loops of `matmul` call.

    allocate(x)                                     arrays for the activations as the dot products want them: a tuple
    prepare(x, column, activations)                 fills them for one column
    one(weights, row, activations, column, scratch)         a dot product, float32
    four(weights, row, activations, column, scratch, out)   those of `COLUMNS` columns, into out[column : column + 4, row]

    `scratch` is two float32 arrays of `MAX_GROUPS`, a thread's own.
    """

    allocate: Callable[..., Any]
    prepare: Callable[..., None]
    one: Callable[..., Any]
    four: Callable[..., None]


def plain_product(dot: PlainDot, block_type: BlockType) -> Product:
    """Floats times floats."""
    widen, widen_one, size = dot.widen, dot.widen_one, block_type.block_bytes

    @inline
    def allocate(x: Any) -> Any:
        return (x,)

    @inline
    def prepare(x: Any, column: Any, activations: Any) -> None:
        pass

    @inline
    def one(weights: Any, row: Any, activations: Any, column: Any, scratch: Any) -> Any:
        (x,) = activations
        n = x.shape[1]
        at, first = row * weights.shape[1], column * n
        a = b = c = d = splat(_ZERO, LANES)
        i = 0
        while i + 4 * LANES <= n:
            a = fma(widen(weights, at + i * size), load(x, first + i, LANES), a)
            b = fma(widen(weights, at + (i + LANES) * size), load(x, first + i + LANES, LANES), b)
            c = fma(widen(weights, at + (i + 2 * LANES) * size), load(x, first + i + 2 * LANES, LANES), c)
            d = fma(widen(weights, at + (i + 3 * LANES) * size), load(x, first + i + 3 * LANES, LANES), d)
            i += 4 * LANES
        while i + LANES <= n:
            a = fma(widen(weights, at + i * size), load(x, first + i, LANES), a)
            i += LANES
        total = sum_lanes((a + b) + (c + d))
        while i < n:
            total += widen_one(weights, at + i * size) * x[column, i]
            i += 1
        return total

    @inline
    def four(weights: Any, row: Any, activations: Any, column: Any, scratch: Any, out: Any) -> None:
        (x,) = activations
        n = x.shape[1]
        at, first = row * weights.shape[1], column * n
        a = b = c = d = splat(_ZERO, LANES)
        i = 0
        while i + LANES <= n:
            w = widen(weights, at + i * size)
            a = fma(w, load(x, first + i, LANES), a)
            b = fma(w, load(x, first + n + i, LANES), b)
            c = fma(w, load(x, first + 2 * n + i, LANES), c)
            d = fma(w, load(x, first + 3 * n + i, LANES), d)
            i += LANES
        e, f, g, h = sum_lanes(a), sum_lanes(b), sum_lanes(c), sum_lanes(d)
        while i < n:
            v = widen_one(weights, at + i * size)
            e += v * x[column, i]
            f += v * x[column + 1, i]
            g += v * x[column + 2, i]
            h += v * x[column + 3, i]
            i += 1
        out[column, row], out[column + 1, row], out[column + 2, row], out[column + 3, row] = e, f, g, h

    return Product(allocate, prepare, one, four)

def _quantizer(span: int, group: int) -> Callable[..., None]:
    """The inline function that rounds `span` activations to int8 with one scale; `group` of them count in one sum."""

    @inline
    def quantize_span(x: Any, at: Any, quants: Any, scales: Any, sums: Any) -> None:
        top = splat(_ZERO, 16)
        for i in range(0, span, 16):
            top = maximum(absolute(load(x, at + i, 16)), top)
        largest = max_lanes(top)
        scale, inverse = _ZERO, _ZERO
        if largest > _ZERO:
            inverse = _LARGEST_CODE / largest
            scale = half_to_float(float_to_half(largest / _LARGEST_CODE)) if span == PART else np.float32(1) / inverse
        store(scales, at // span, splat(scale, 1))
        for first in range(0, span, group):
            total = np.int32(0)
            for i in range(first, first + group, 16):
                codes = convert(rint(load(x, at + i, 16) * inverse), np.int32)
                store(quants, at + i, convert(codes, np.int8))
                total += sum_lanes(codes)
            store(sums, (at + first) // group, splat(np.float32(total) * scale, 1))

    return quantize_span


@dataclass(frozen=True, slots=True)
class _Shape:
    """The integers of a packed type: weights per block, bytes per block, activations per scale, weights per group, and how
    many weights are multiplied at once."""

    block: int
    block_bytes: int
    span: int
    group: int
    width: int

    @property
    def lanes(self) -> int:
        """Lanes of a product of codes: each sums four of them."""
        return self.width // 4


def packed_product(dot: PackedDot, block_type: BlockType) -> Product:
    """Codes times codes."""
    span = SUPER_BLOCK if block_type.activation == "Q8_K" else PART
    width = 2 * PART if _WIDE_INTEGERS and span >= 2 * PART else PART
    shape = _Shape(block_type.block_length, block_type.block_bytes, span, dot.group, width)
    minimums = _minimums(shape) if dot.affine else _Minimums(_zero, _take_none, _same)
    allocate, prepare = _activations(shape)
    # Signed codes come from tables, part by part: for one column, joining two parts costs more than it saves.
    single = shape if dot.affine else replace(shape, width=PART)
    return Product(allocate, prepare, _packed_one(dot, single, minimums), _packed_four(dot, shape, minimums))


def _activations(shape: _Shape) -> tuple[Callable[..., Any], Callable[..., None]]:
    span, group = shape.span, shape.group
    quantize_span = _quantizer(span, group)

    @inline
    def allocate(x: Any) -> Any:
        columns, n = x.shape
        quants = np.empty((columns, n), np.int8)
        scales = np.empty((columns, n // span), np.float32)
        sums = np.empty((columns, n // group), np.float32)
        return quants, scales, sums

    @inline
    def prepare(x: Any, column: Any, activations: Any) -> None:
        quants, scales, sums = activations
        n = x.shape[1]
        for at in range(column * n, (column + 1) * n, span):
            quantize_span(x, at, quants, scales, sums)

    return allocate, prepare


@dataclass(frozen=True, slots=True)
class _Minimums:
    """How to collect what minimums take away from a dot product.

    start()                              nothing yet
    take(minimums, sums, at, taken)      and what those of a block take; its sums begin at `at`
    finish(taken)                        as one float32
    """

    start: Callable[..., Any]
    take: Callable[..., Any]
    finish: Callable[..., Any]


@inline
def _zero() -> Any:
    return _ZERO


@inline
def _same(taken: Any) -> Any:
    return taken


@inline
def _take_none(minimums: Any, sums: Any, at: Any, taken: Any) -> Any:
    return taken


@inline
def _eight_zeros() -> Any:
    return splat(_ZERO, 8)


def _minimums(shape: _Shape) -> _Minimums:
    groups = shape.block // shape.group

    @inline
    def take_each(minimums: Any, sums: Any, at: Any, taken: Any) -> Any:
        for g in range(groups):
            taken += lane(load(minimums, g, 1), 0) * lane(load(sums, at + g, 1), 0)
        return taken

    @inline
    def take_eight(minimums: Any, sums: Any, at: Any, taken: Any) -> Any:
        for g in range(0, groups, 8):
            taken = fma(load(minimums, g, 8), load(sums, at + g, 8), taken)
        return taken

    if groups % 8:
        return _Minimums(_zero, take_each, _same)
    return _Minimums(_eight_zeros, take_eight, sum_lanes)


@dataclass(frozen=True, slots=True)
class _Vectors:
    """`inline` functions on `width` weights.

    unit(weights, offset, part)       the codes from part `part` of a block on
    unit_scale(scales, part)          their scales, one for each lane of their products
    products(codes, quants, at)       the sums of four products each with the activations from `at` on, float32
    column_scale(scales, at)          one scale in all lanes
    """

    unit: Callable[..., Any]
    unit_scale: Callable[..., Any]
    products: Callable[..., Any]
    column_scale: Callable[..., Any]


def _vectors(dot: PackedDot, shape: _Shape) -> _Vectors:
    codes_of, width, lanes = dot.codes, shape.width, shape.lanes
    part_groups, unit_groups = PART // shape.group, width // shape.group
    spread = shuffle(*(group for group in range(unit_groups) for _ in range(lanes // unit_groups)))

    @inline
    def two_parts(weights: Any, offset: Any, part: Any) -> Any:
        return _join_parts(codes_of(weights, offset, part), codes_of(weights, offset, part + 1))

    @inline
    def unit_scale(scales: Any, part: Any) -> Any:
        few = load(scales, part * part_groups, unit_groups)
        return spread(few, few)

    @inline
    def products(codes: Any, quants: Any, at: Any) -> Any:
        return convert(dot_quads(splat(_NO_PRODUCT, lanes), codes, load(quants, at, width)), np.float32)

    @inline
    def column_scale(scales: Any, at: Any) -> Any:
        return splat(lane(load(scales, at, 1), 0), lanes)

    return _Vectors(codes_of if width == PART else two_parts, unit_scale, products, column_scale)


def _packed_one(dot: PackedDot, shape: _Shape, minimums: _Minimums) -> Callable[..., Any]:
    scales_of, vectors, lanes = dot.scales, _vectors(dot, shape), shape.lanes
    unit, unit_scale, products, column_scale = vectors.unit, vectors.unit_scale, vectors.products, vectors.column_scale
    nothing, take, finish = minimums.start, minimums.take, minimums.finish
    block, block_bytes, width = shape.block, shape.block_bytes, shape.width
    spans, parts, step, groups = block // shape.span, shape.span // PART, width // PART, block // shape.group

    @inline
    def one(weights: Any, row: Any, activations: Any, column: Any, scratch: Any) -> Any:
        quants, x_scales, sums = activations
        scales, lows = scratch
        blocks = quants.shape[1] // block
        total, taken = splat(_ZERO, lanes), nothing()
        for i in range(blocks):
            offset, index = row * weights.shape[1] + i * block_bytes, column * blocks + i
            for line in range(0, block_bytes, _LINE):
                prefetch(weights, offset + _AHEAD + line)
            scales_of(weights, offset, scales, lows)
            for s in range(spans):
                inner = splat(_ZERO, lanes)
                for part in range(s * parts, (s + 1) * parts, step):
                    codes = unit(weights, offset, part)
                    inner = fma(products(codes, quants, index * block + part * PART), unit_scale(scales, part), inner)
                total = fma(inner, column_scale(x_scales, index * spans + s), total)
            taken = take(lows, sums, index * groups, taken)
        return sum_lanes(total) - finish(taken)

    return one


def _packed_four(dot: PackedDot, shape: _Shape, minimums: _Minimums) -> Callable[..., None]:
    scales_of, vectors, lanes = dot.scales, _vectors(dot, shape), shape.lanes
    unit, unit_scale, products, column_scale = vectors.unit, vectors.unit_scale, vectors.products, vectors.column_scale
    nothing, take, finish = minimums.start, minimums.take, minimums.finish
    block, block_bytes, width = shape.block, shape.block_bytes, shape.width
    spans, parts, step, groups = block // shape.span, shape.span // PART, width // PART, block // shape.group

    @inline
    def four(weights: Any, row: Any, activations: Any, column: Any, scratch: Any, out: Any) -> None:
        quants, x_scales, sums = activations
        scales, lows = scratch
        n = quants.shape[1]
        blocks = n // block
        a = b = c = d = splat(_ZERO, lanes)
        e = f = g = h = nothing()
        for i in range(blocks):
            offset, index = row * weights.shape[1] + i * block_bytes, column * blocks + i
            scales_of(weights, offset, scales, lows)
            for s in range(spans):
                p = q = r = t = splat(_ZERO, lanes)
                for part in range(s * parts, (s + 1) * parts, step):
                    codes, scale = unit(weights, offset, part), unit_scale(scales, part)
                    at = index * block + part * PART
                    p = fma(products(codes, quants, at), scale, p)
                    q = fma(products(codes, quants, at + n), scale, q)
                    r = fma(products(codes, quants, at + 2 * n), scale, r)
                    t = fma(products(codes, quants, at + 3 * n), scale, t)
                at = index * spans + s
                a = fma(p, column_scale(x_scales, at), a)
                b = fma(q, column_scale(x_scales, at + blocks * spans), b)
                c = fma(r, column_scale(x_scales, at + 2 * blocks * spans), c)
                d = fma(t, column_scale(x_scales, at + 3 * blocks * spans), d)
            at = index * groups
            e = take(lows, sums, at, e)
            f = take(lows, sums, at + blocks * groups, f)
            g = take(lows, sums, at + 2 * blocks * groups, g)
            h = take(lows, sums, at + 3 * blocks * groups, h)
        out[column, row], out[column + 1, row] = sum_lanes(a) - finish(e), sum_lanes(b) - finish(f)
        out[column + 2, row], out[column + 3, row] = sum_lanes(c) - finish(g), sum_lanes(d) - finish(h)

    return four
