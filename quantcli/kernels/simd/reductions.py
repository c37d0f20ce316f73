"""Horizontal reductions and masks."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from quantcli.kernels.simd.operators import comparison
from quantcli.kernels.simd.vector import I32, LLVM_ELEMENTS, Vector, call, literal, llvm_type, suffix


@intrinsic  # type: ignore[untyped-decorator]
def any_lane(typing: Any, mask: Any) -> Any:
    """True if the mask is true in some lane."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = ir.IntType(mask.lanes)
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], bits), ir.Constant(bits, 0))

    return types.boolean(mask), code


@intrinsic  # type: ignore[untyped-decorator]
def all_lanes(typing: Any, mask: Any) -> Any:
    """True if the mask is true in every lane."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = ir.IntType(mask.lanes)
        return builder.icmp_unsigned("==", builder.bitcast(args[0], bits), ir.Constant(bits, -1))

    return types.boolean(mask), code


@intrinsic  # type: ignore[untyped-decorator]
def mask_bits(typing: Any, mask: Any) -> Any:
    """The mask of 8, 16, 32 or 64 lanes as an unsigned integer of that many bits; lane 0 is the lowest bit."""
    integer = getattr(types, f"uint{mask.lanes}")

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(mask.lanes))

    return integer(mask), code


@intrinsic  # type: ignore[untyped-decorator]
def bits_mask(typing: Any, bits: Any) -> Any:
    """The mask whose lanes are the bits of an unsigned integer, lane 0 the lowest: the inverse of `mask_bits`."""
    mask = Vector(types.boolean, bits.bitwidth)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], llvm_type(mask))

    return mask(bits), code


@intrinsic  # type: ignore[untyped-decorator]
def first_lane(typing: Any, mask: Any) -> Any:
    """The index of the first lane whose mask is true; the number of lanes where none is."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = ir.IntType(mask.lanes)
        false = ir.Constant(ir.IntType(1), 0)
        count = call(builder, f"llvm.cttz.i{mask.lanes}", bits, [builder.bitcast(args[0], bits), false])
        return builder.zext(count, ir.IntType(64)) if mask.lanes < 64 else count

    return types.intp(mask), code


def _halves(builder: Any, value: Any, lanes: int) -> list[Any]:
    """The first `lanes` lanes of a vector and the next `lanes`."""
    kind = ir.VectorType(I32, lanes)
    return [
        builder.shuffle_vector(value, value, ir.Constant(kind, list(range(first, first + lanes)))) for first in (0, lanes)
    ]


@intrinsic  # type: ignore[untyped-decorator]
def sum_lanes(typing: Any, vector: Any) -> Any:
    """The sum of the lanes. Floats are added pairwise (upper half to lower half): for results that need no fixed order."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind, element = args[0].type, args[0].type.element
        if not vector.is_float:
            return call(builder, f"llvm.vector.reduce.add.{suffix(kind)}", element, [args[0]])
        value, lanes = args[0], vector.lanes
        while lanes > 1:
            lanes //= 2
            halves = _halves(builder, value, lanes)
            value = builder.fadd(*halves)
        return builder.extract_element(value, ir.Constant(I32, 0))

    return vector.element(vector), code


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def sum_rows(typing: Any, array: Any, rows: Any, lanes: Any) -> Any:
    """The sums of `rows` vectors of `lanes` floats each, one after another in memory: a vector. Both numbers are powers of
    two, `rows` the smaller one or equal. Each vector is added as `sum_lanes` adds it, but several at once."""
    count, width, element = literal(rows), literal(lanes), LLVM_ELEMENTS[array.dtype]

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = builder.bitcast(args[0], ir.VectorType(element, width).as_pointer())
        places = [builder.gep(first, [ir.Constant(I32, row)]) for row in range(count)]
        values, length = [builder.load(place, align=array.dtype.bitwidth // 8) for place in places], width
        while length > 1:
            length //= 2
            values = _folded(builder, values, length)
        return values[0]

    return Vector(array.dtype, count)(array, rows, lanes), code


def _folded(builder: Any, values: list[Any], length: int) -> list[Any]:
    """Of vectors of rows with twice `length` lanes each: in every row, the upper half added to the lower half. Two vectors
    become one, as long as there are two."""
    pairs = list(zip(values[::2], values[1::2], strict=True)) if len(values) > 1 else [(values[0], values[0])]
    starts = range(0, values[0].type.count * min(len(values), 2), 2 * length)
    halves = [[start + side + i for start in starts for i in range(length)] for side in (0, length)]
    patterns = [ir.Constant(ir.VectorType(I32, len(half)), half) for half in halves]
    return [builder.fadd(*(builder.shuffle_vector(*pair, pattern) for pattern in patterns)) for pair in pairs]


@intrinsic  # type: ignore[untyped-decorator]
def max_lanes(typing: Any, vector: Any) -> Any:
    """The largest lane; float lanes must not be NaN."""
    return _extreme_lane(vector, ">", "max")


@intrinsic  # type: ignore[untyped-decorator]
def min_lanes(typing: Any, vector: Any) -> Any:
    """The smallest lane; float lanes must not be NaN."""
    return _extreme_lane(vector, "<", "min")


def _extreme_lane(vector: Vector, sign: str, name: str) -> Any:
    """Reduce floats by comparing halves pairwise. LLVM's own reduction handles NaN in every step, at extra cost."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, lanes = args[0], vector.lanes
        if not vector.is_float:
            reduction = f"llvm.vector.reduce.{'s' if vector.is_signed else 'u'}{name}.{suffix(value.type)}"
            return call(builder, reduction, value.type.element, [value])
        while lanes > 1:
            lanes //= 2
            halves = _halves(builder, value, lanes)
            value = builder.select(comparison(sign)(builder, vector, *halves), *halves)
        return builder.extract_element(value, ir.Constant(I32, 0))

    return vector.element(vector), code
