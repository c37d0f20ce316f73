"""Dot products of a row of weights with one activation column, or with `COLUMNS` of them at once.

Plain types multiply floats. Packed types multiply integers: activations are rounded to int8 first, with one scale for 32 of
them where the type's partner is Q8_0 or Q8_1 (the scale a half, as in those blocks), one for 256 where it is Q8_K. They are
kept as arrays of codes, of scales, and of sums times scale, which is what a type's minimums are multiplied by.

Everything here is inlined into the kernels of `matmul`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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

WORDS: Final = PART // 4
"""Lanes of a product of codes: each sums four of them."""

MAX_GROUPS: Final = 16
"""Groups of weights with a scale of their own in a block, at most."""

_LINE: Final = 64
_AHEAD: Final = 2048
"""Bytes of a cache line, and how far before their use weights are asked for: a row is read once, and what the machine
fetches ahead by itself ends at a page."""

_ZERO = np.float32(0)
_NO_PRODUCT = np.int32(0)
_LARGEST_CODE = np.float32(127)
_halves = shuffle(0, 0, 0, 0, 1, 1, 1, 1)


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
    """The integers of a packed type: weights per block, bytes per block, activations per scale, weights per group."""

    block: int
    block_bytes: int
    span: int
    group: int


def packed_product(dot: PackedDot, block_type: BlockType) -> Product:
    """Codes times codes."""
    span = SUPER_BLOCK if block_type.activation == "Q8_K" else PART
    shape = _Shape(block_type.block_length, block_type.block_bytes, span, dot.group)
    allocate, prepare = _activations(shape)
    minimum_part = _minimum_part(shape) if dot.affine else _no_minimum
    part_scale = _scale_of_halves if dot.group < PART else _scale_of_part
    return Product(
        allocate,
        prepare,
        _packed_one(dot, shape, part_scale, minimum_part),
        _packed_four(dot, shape, part_scale, minimum_part),
    )


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


@inline
def _scale_of_part(scales: Any, part: Any) -> Any:
    return _splat_of(scales, part)


@inline
def _scale_of_halves(scales: Any, part: Any) -> Any:
    pair = load(scales, 2 * part, 2)
    return _halves(pair, pair)


@inline
def _splat_of(values: Any, index: Any) -> Any:
    return splat(lane(load(values, index, 1), 0), WORDS)


@inline
def _products(codes: Any, quants: Any, at: Any) -> Any:
    return convert(dot_quads(splat(_NO_PRODUCT, WORDS), codes, load(quants, at, PART)), np.float32)


@inline
def _no_minimum(minimums: Any, sums: Any, at: Any) -> Any:
    return _ZERO


def _minimum_part(shape: _Shape) -> Callable[..., Any]:
    """What the minimums of a block take away from its dot product."""
    groups = shape.block // shape.group

    @inline
    def one_by_one(minimums: Any, sums: Any, at: Any) -> Any:
        total = _ZERO
        for g in range(groups):
            total += lane(load(minimums, g, 1), 0) * lane(load(sums, at + g, 1), 0)
        return total

    @inline
    def by_eight(minimums: Any, sums: Any, at: Any) -> Any:
        total = splat(_ZERO, 8)
        for g in range(0, groups, 8):
            total = fma(load(minimums, g, 8), load(sums, at + g, 8), total)
        return sum_lanes(total)

    return by_eight if groups % 8 == 0 else one_by_one


def _packed_one(dot: PackedDot, shape: _Shape, part_scale: Any, minimum_part: Any) -> Callable[..., Any]:
    codes_of, scales_of = dot.codes, dot.scales
    block, block_bytes = shape.block, shape.block_bytes
    spans, parts, groups = block // shape.span, shape.span // PART, block // shape.group

    @inline
    def one(weights: Any, row: Any, activations: Any, column: Any, scratch: Any) -> Any:
        quants, x_scales, sums = activations
        scales, minimums = scratch
        blocks = quants.shape[1] // block
        total, taken = splat(_ZERO, WORDS), _ZERO
        for i in range(blocks):
            offset, index = row * weights.shape[1] + i * block_bytes, column * blocks + i
            for line in range(0, block_bytes, _LINE):
                prefetch(weights, offset + _AHEAD + line)
            scales_of(weights, offset, scales, minimums)
            for s in range(spans):
                inner = splat(_ZERO, WORDS)
                for part in range(s * parts, (s + 1) * parts):
                    codes = codes_of(weights, offset, part)
                    inner = fma(_products(codes, quants, index * block + part * PART), part_scale(scales, part), inner)
                total = fma(inner, _splat_of(x_scales, index * spans + s), total)
            taken += minimum_part(minimums, sums, index * groups)
        return sum_lanes(total) - taken

    return one


def _packed_four(dot: PackedDot, shape: _Shape, part_scale: Any, minimum_part: Any) -> Callable[..., None]:
    codes_of, scales_of = dot.codes, dot.scales
    block, block_bytes = shape.block, shape.block_bytes
    spans, parts, groups = block // shape.span, shape.span // PART, block // shape.group

    @inline
    def four(weights: Any, row: Any, activations: Any, column: Any, scratch: Any, out: Any) -> None:
        quants, x_scales, sums = activations
        scales, minimums = scratch
        n = quants.shape[1]
        blocks = n // block
        a = b = c = d = splat(_ZERO, WORDS)
        e = f = g = h = _ZERO
        for i in range(blocks):
            offset, index = row * weights.shape[1] + i * block_bytes, column * blocks + i
            scales_of(weights, offset, scales, minimums)
            for s in range(spans):
                p = q = r = t = splat(_ZERO, WORDS)
                for part in range(s * parts, (s + 1) * parts):
                    codes, scale = codes_of(weights, offset, part), part_scale(scales, part)
                    at = index * block + part * PART
                    p = fma(_products(codes, quants, at), scale, p)
                    q = fma(_products(codes, quants, at + n), scale, q)
                    r = fma(_products(codes, quants, at + 2 * n), scale, r)
                    t = fma(_products(codes, quants, at + 3 * n), scale, t)
                at = index * spans + s
                a = fma(p, _splat_of(x_scales, at), a)
                b = fma(q, _splat_of(x_scales, at + blocks * spans), b)
                c = fma(r, _splat_of(x_scales, at + 2 * blocks * spans), c)
                d = fma(t, _splat_of(x_scales, at + 3 * blocks * spans), d)
            at = index * groups
            e += minimum_part(minimums, sums, at)
            f += minimum_part(minimums, sums, at + blocks * groups)
            g += minimum_part(minimums, sums, at + 2 * blocks * groups)
            h += minimum_part(minimums, sums, at + 3 * blocks * groups)
        out[column, row], out[column + 1, row] = sum_lanes(a) - e, sum_lanes(b) - f
        out[column + 2, row], out[column + 3, row] = sum_lanes(c) - g, sum_lanes(d) - h

    return four
