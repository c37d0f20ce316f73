"""Lane-wise operations, shuffles and table lookups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from quantcli.kernels.simd.operators import comparison
from quantcli.kernels.simd.vector import I32, Vector, call, llvm_type, machine_features, suffix


def _float_intrinsic(name: str, arity: int, note: str) -> Any:
    """An LLVM float intrinsic on vectors of one type, as a numba intrinsic."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        return call(builder, f"llvm.{name}.{suffix(kind)}", kind, list(args))

    if arity == 1:

        def one(typing: Any, x: Any) -> Any:
            return x(x), emit

        one.__doc__, one.__name__ = note, name
        return intrinsic(one)

    def three(typing: Any, x: Any, y: Any, z: Any) -> Any:
        return x(x, x, x), emit

    three.__doc__, three.__name__ = note, name
    return intrinsic(three)


absolute = _float_intrinsic("fabs", 1, "Absolute value.")
rint = _float_intrinsic("rint", 1, "The nearest integer, halves to even.")
floor = _float_intrinsic("floor", 1, "The largest integer not above.")
sqrt = _float_intrinsic("sqrt", 1, "The correctly rounded square root.")
truncate = _float_intrinsic("trunc", 1, "The integer part.")
fma = _float_intrinsic("fma", 3, "x * y + z in one rounding. Not for anything that decides bytes.")


@intrinsic  # type: ignore[untyped-decorator]
def round_away(typing: Any, x: Any) -> Any:
    """Round to nearest, ties away from zero, as C's `roundf`: truncation after adding just under a half. LLVM's own `round`
    calls the C library where the machine has no instruction."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        below_half = ir.Constant(kind, [0.5 - 2.0**-25] * kind.count)
        signed = call(builder, f"llvm.copysign.{suffix(kind)}", kind, [below_half, args[0]])
        return call(builder, f"llvm.trunc.{suffix(kind)}", kind, [builder.fadd(args[0], signed)])

    return x(x), code


@intrinsic  # type: ignore[untyped-decorator]
def rotate_right(typing: Any, vector: Any, places: Any) -> Any:
    """Rotate the bits of unsigned lanes, each by its own number of `places`, which may be negative."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, count = args
        return call(builder, f"llvm.fshr.{suffix(value.type)}", value.type, [value, value, count])

    return vector(vector, vector), code


@intrinsic  # type: ignore[untyped-decorator]
def select(typing: Any, mask: Any, a: Any, b: Any) -> Any:
    """Lane by lane `a` where the mask is true, else `b`; `a` and `b` are vectors of one type."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(*args)

    return a(mask, a, a), code


@intrinsic  # type: ignore[untyped-decorator]
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """`a < b ? a : b` in each lane."""
    return a(a, a), lambda context, builder, sig, args: builder.select(comparison("<")(builder, a, *args), *args)


@intrinsic  # type: ignore[untyped-decorator]
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """`a > b ? a : b` in each lane."""
    return a(a, a), lambda context, builder, sig, args: builder.select(comparison(">")(builder, a, *args), *args)


@intrinsic  # type: ignore[untyped-decorator]
def convert(typing: Any, vector: Any, dtype: Any) -> Any:
    """Lane-wise cast by C's rules (a float truncates towards zero and must be in range)."""
    target = Vector(dtype.instance_type, vector.lanes)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, kind = args[0], llvm_type(target)
        if vector.is_float and target.is_float:
            wider = target.element.bitwidth > vector.element.bitwidth
            return (builder.fpext if wider else builder.fptrunc)(value, kind)
        if vector.is_float:
            return (builder.fptosi if target.is_signed else builder.fptoui)(value, kind)
        if target.is_float:
            return (builder.sitofp if vector.is_signed else builder.uitofp)(value, kind)
        narrow, wide = kind.element.width, value.type.element.width
        if narrow == wide:
            return value
        if narrow < wide:
            return builder.trunc(value, kind)
        return (builder.sext if vector.is_signed else builder.zext)(value, kind)

    return target(vector, dtype), code


@intrinsic  # type: ignore[untyped-decorator]
def reinterpret(typing: Any, vector: Any, dtype: Any) -> Any:
    """Bit cast to elements of `dtype`. The lane count follows from the element sizes."""
    element = dtype.instance_type
    target = Vector(element, vector.lanes * vector.element.bitwidth // element.bitwidth)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], llvm_type(target))

    return target(vector, dtype), code


def shuffle(*pattern: int) -> Any:
    """An intrinsic `f(a, b)` whose lane i is lane `pattern[i]` of `a` and `b` concatenated. Make it once, in a module
    constant."""

    def shuffled(typing: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.shuffle_vector(*args, ir.Constant(ir.VectorType(I32, len(pattern)), list(pattern)))

        return Vector(a.element, len(pattern))(a, a), code

    return intrinsic(shuffled)


@intrinsic  # type: ignore[untyped-decorator]
def lookup(typing: Any, table: Any, index: Any) -> Any:
    """Table lookup: lane i is lane `index[i] % lanes` of the float32 `table`; `index` is int32. One permute instruction
    with AVX2 (8 lanes) and AVX-512 (16), a load per lane elsewhere."""
    instructions = {8: ("avx2", "avx2.permps"), 16: ("avx512f", "avx512.permvar.sf.512")}
    feature, name = instructions.get(table.lanes, ("", ""))

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values, places = args
        if feature in machine_features():
            return call(builder, f"llvm.x86.{name}", values.type, [values, places])
        places = builder.and_(places, ir.Constant(places.type, [table.lanes - 1] * table.lanes))
        result = ir.Constant(values.type, ir.Undefined)
        for number in range(table.lanes):
            here = ir.Constant(I32, number)
            found = builder.extract_element(values, builder.extract_element(places, here))
            result = builder.insert_element(result, found, here)
        return result

    return table(table, index), code


def byte_table(*values: int) -> Any:
    """An intrinsic `f(index)` whose lane i is `values[index[i]]`: 16 values of -128..255, `index` uint8 lanes below 16, the
    result int8 of the same bits. Make it once, in a module constant. A byte shuffle where the machine has one."""

    def looked_up(typing: Any, index: Any) -> Any:
        result = Vector(types.int8, index.lanes)
        name = {16: "ssse3.pshuf.b.128", 32: "avx2.pshuf.b", 64: "avx512.pshuf.b.512"}.get(index.lanes, "")
        feature = {16: "ssse3", 32: "avx2", 64: "avx512bw"}.get(index.lanes, "")

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = args[0].type
            if feature in machine_features():
                table = ir.Constant(kind, [value & 255 for value in values] * (index.lanes // 16))
                return call(builder, f"llvm.x86.{name}", kind, [table, args[0]])
            choices = [ir.Constant(kind, [value & 255] * index.lanes) for value in values]
            for bit in range(4):
                digit = builder.and_(args[0], ir.Constant(kind, [1 << bit] * index.lanes))
                odd = builder.icmp_unsigned("!=", digit, ir.Constant(kind, [0] * index.lanes))
                choices = [builder.select(odd, high, low) for low, high in zip(choices[::2], choices[1::2], strict=True)]
            return choices[0]

        return result(index), code

    return intrinsic(looked_up)


def staircase(bounds: Sequence[float], values: Sequence[float]) -> Any:
    """An intrinsic `f(x)` on float32 lanes: `values[n]`, float32, where n counts the ascending `bounds` that x is not below
    (all of them for NaN). Make it once, in a module constant."""

    def climbed(typing: Any, x: Any) -> Any:
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            def splatted(value: float) -> Any:
                return ir.Constant(args[0].type, [float(value)] * x.lanes)

            result = splatted(values[0])
            for bound, value in zip(bounds, values[1:], strict=True):
                below = builder.fcmp_ordered("<", args[0], splatted(bound))
                result = builder.select(below, result, splatted(value))
            return result

        return x(x), code

    return intrinsic(climbed)
