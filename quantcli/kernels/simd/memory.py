"""Loads and stores of vectors and scalars, stack memory, transpose, prefetch and broadcast."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from quantcli.kernels.simd.vector import I32, LLVM_ELEMENTS, Vector, broadcast, call, literal, llvm_type, pointer

CACHE_LINE: Final = 64
"""Bytes of a cache line."""


@intrinsic  # type: ignore[untyped-decorator]
def address(typing: Any, array: Any, dtype: Any) -> Any:
    """The base address of a contiguous array, as a pointer to `dtype`, which every function here accepts as an array.

    It is not reference-counted, which would cost more than a short loop, and does not keep the array alive.
    """

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.bitcast(data, context.get_value_type(sig.return_type))

    return types.CPointer(dtype.instance_type)(array, dtype), code


@intrinsic  # type: ignore[untyped-decorator]
def cache_line(typing: Any, place: Any) -> Any:
    """The first address from a base address on where a cache line begins."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = builder.ptrtoint(args[0], ir.IntType(64))
        last, mask = ir.Constant(number.type, CACHE_LINE - 1), ir.Constant(number.type, -CACHE_LINE)
        rounded = builder.and_(builder.add(number, last), mask)
        return builder.inttoptr(rounded, args[0].type)

    return place(place), code


@intrinsic  # type: ignore[untyped-decorator]
def recast(typing: Any, place: Any, dtype: Any) -> Any:
    """Pointer cast: the same address, of elements of `dtype`."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(dtype.instance_type)(place, dtype), code


@intrinsic  # type: ignore[untyped-decorator]
def advance(typing: Any, place: Any, count: Any) -> Any:
    """The address `count` elements after a base address."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return place(place, types.intp), code


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def local(typing: Any, count: Any, dtype: Any) -> Any:
    """Uninitialized stack memory for `count` elements of `dtype`, aligned to a cache line. It lives until the kernel
    returns."""
    size, element = literal(count), dtype.instance_type

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        with builder.goto_entry_block():
            buffer = builder.alloca(ir.ArrayType(LLVM_ELEMENTS[element], size))
        buffer.align = CACHE_LINE
        return builder.bitcast(buffer, context.get_value_type(sig.return_type))

    return types.CPointer(element)(count, dtype), code


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def load(typing: Any, array: Any, index: Any, lanes: Any) -> Any:
    """`lanes` consecutive elements of a contiguous array from element `index` on, unchecked."""
    vector = Vector(array.dtype, literal(lanes))

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = pointer(context, builder, sig.args[0], args[0], args[1], llvm_type(vector))
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp, lanes), code


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write the lanes of `vector` to consecutive elements of a contiguous array, unchecked."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = pointer(context, builder, sig.args[0], args[0], args[1], llvm_type(vector))
        builder.store(args[2], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic  # type: ignore[untyped-decorator]
def load_scalar(typing: Any, array: Any, offset: Any, dtype: Any) -> Any:
    """One little-endian scalar of `dtype` from byte `offset` of a uint8 array, at any alignment."""
    element = dtype.instance_type

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = pointer(context, builder, sig.args[0], args[0], args[1], LLVM_ELEMENTS[element])
        return builder.load(place, align=1)

    return element(array, types.intp, dtype), code


@intrinsic  # type: ignore[untyped-decorator]
def store_scalar(typing: Any, array: Any, offset: Any, value: Any) -> Any:
    """Write a scalar, little-endian, to byte `offset` of a uint8 array, at any alignment."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = pointer(context, builder, sig.args[0], args[0], args[1], args[2].type)
        builder.store(args[2], place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), code


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def transpose_tile(
    typing: Any, source: Any, starts: Any, first: Any, offset: Any, target: Any, at: Any, stride: Any, lanes: Any
) -> Any:
    """Transpose a square of `lanes` x `lanes` elements (a power of two).

    Row r is read from `source[starts[first + r] + offset]` on; column c goes to `target[at + c * stride + r]`. `source` and
    `target` are contiguous and of one type; `starts` is intp.
    """
    size = literal(lanes)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source_type, starts_type, target_type = sig.args[0], sig.args[1], sig.args[4]
        vector = ir.VectorType(LLVM_ELEMENTS[source_type.dtype], size)
        align, index = source_type.dtype.bitwidth // 8, args[2].type
        rows = []
        for row in range(size):
            number = builder.add(args[2], ir.Constant(index, row))
            start = builder.load(pointer(context, builder, starts_type, args[1], number, index))
            place = pointer(context, builder, source_type, args[0], builder.add(start, args[3]), vector)
            rows.append(builder.load(place, align=align))
        for column, value in enumerate(_transposed(builder, rows)):
            number = builder.add(args[5], builder.mul(args[6], ir.Constant(index, column)))
            builder.store(value, pointer(context, builder, target_type, args[4], number, vector), align=align)
        return context.get_dummy_value()

    return types.void(source, starts, types.intp, types.intp, target, types.intp, types.intp, lanes), code


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose a square of vectors: each step swaps one bit between lane index and row index."""
    size = len(rows)
    step = 1
    while step < size:
        low = [lane if not lane & step else size + lane - step for lane in range(size)]
        high = [lane + step if not lane & step else size + lane for lane in range(size)]
        masks = [ir.Constant(ir.VectorType(I32, size), pattern) for pattern in (low, high)]
        swapped = list(rows)
        for row in range(size):
            if not row & step:
                for target, mask in zip((row, row + step), masks, strict=True):
                    swapped[target] = builder.shuffle_vector(rows[row], rows[row + step], mask)
        rows = swapped
        step *= 2
    return rows


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Prefetch the cache line of element `index`, for a single read."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = pointer(context, builder, sig.args[0], args[0], args[1], ir.IntType(8))
        options = [ir.Constant(I32, value) for value in (0, 0, 1)]
        call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, *options])
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def splat(typing: Any, scalar: Any, lanes: Any) -> Any:
    """Broadcast: the scalar in every lane. Its type is the element type."""
    vector = Vector(types.unliteral(scalar), literal(lanes))

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return broadcast(builder, args[0], vector.lanes)

    return vector(vector.element, lanes), code


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def lane(typing: Any, vector: Any, index: Any) -> Any:
    """One lane as a scalar."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], ir.Constant(I32, literal(index)))

    return vector.element(vector, index), code
