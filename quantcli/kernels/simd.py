"""Fixed-width vectors for numba: the instructions a kernel needs, said explicitly instead of hoped for.

A `Vector(element, lanes)` is one LLVM vector value. LLVM splits a vector that is wider than the machine's registers, so the
same kernel runs everywhere, and each lane computes exactly what scalar code would: IEEE operations in the order written, no
fast-math flags, no contraction (except in `fma`, which is one rounding by definition).

    x = load(array, index, LANES)           LANES consecutive elements, from any alignment
    store(array, index, x)
    splat(scalar, LANES)                    the scalar in every lane
    + - * /  < <= > >= == !=  & | ^ ~ << >>  between equal vectors, or one and a scalar of its element type; -x
    select(mask, a, b)  any_lane(mask)  all_lanes(mask)
    absolute  rint  round_away  truncate  sqrt  floor  fma  minimum  maximum
    convert(x, np.int32)                    lane by lane, as C casts do
    reinterpret(x, np.int32)                the same bits as other elements
    sum_lanes  max_lanes  min_lanes         down to a scalar; integer, or float pairwise
    mask_bits  bits_mask  first_lane        a mask as an integer, and back; where it is first true
    transpose_tile                          a square of elements, rows to columns
    dot_pairs / dot_quads                   integer multiply-add, the machine's instruction where there is one

Integers passed as lane counts must be literals or module constants: they choose the type.

The quantizers put one block in each lane (see `blocks/`) and are `LANES` wide: the width of the machine's registers. Their
result does not depend on it.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic, models, register_model
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature


@cache
def machine_features() -> frozenset[str]:
    """LLVM's names of the host's instruction sets. Empty with `QUANTCLI_SIMD=generic`, which keeps kernels to portable IR
    (the tests run both)."""
    if os.environ.get("QUANTCLI_SIMD") == "generic":
        return frozenset()
    features: Mapping[str, bool] = binding.get_host_cpu_features()
    return frozenset(name for name, present in features.items() if present)


LANES: Final = 16 if "avx512f" in machine_features() else 8
"""Lanes of a float32 vector in the quantizers: blocks that are searched at the same time."""


class Vector(types.Type):  # type: ignore[misc]
    """The numba type of `lanes` elements in one vector register (or as many as it takes)."""

    def __init__(self, element: types.Type, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"Vector({element}, {lanes})")

    @property
    def is_float(self) -> bool:
        return isinstance(self.element, types.Float)

    @property
    def is_signed(self) -> bool:
        return isinstance(self.element, types.Integer) and bool(self.element.signed)


_LLVM_ELEMENTS: Final[Mapping[types.Type, ir.Type]] = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.boolean: ir.IntType(1),
    **{getattr(types, f"{sign}int{bits}"): ir.IntType(bits) for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_I32: Final = ir.IntType(32)


def _llvm(vector: Vector) -> ir.VectorType:
    return ir.VectorType(_LLVM_ELEMENTS[vector.element], vector.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, _llvm(vector))


def _literal(value: types.Type) -> int:
    if not isinstance(value, types.IntegerLiteral):
        raise TypeError("a lane count must be a literal integer or a module constant")
    return int(value.literal_value)


def _broadcast(builder: Any, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, target: ir.Type) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), target.as_pointer())


def _call(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [value.type for value in arguments]), name
    )
    return builder.call(function, arguments)


def _suffix(vector: ir.VectorType) -> str:
    element = vector.element
    kind = {ir.FloatType: "f32", ir.DoubleType: "f64"}.get(type(element)) or f"i{element.width}"
    return f"v{vector.count}{kind}"


# Memory


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def load(typing: Any, array: Any, index: Any, lanes: Any) -> Any:
    """`lanes` consecutive elements of a contiguous array from element `index` on, unchecked."""
    vector = Vector(array.dtype, _literal(lanes))

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _pointer(context, builder, sig.args[0], args[0], args[1], _llvm(vector))
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp, lanes), code


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write the lanes of `vector` to consecutive elements of a contiguous array, unchecked."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _pointer(context, builder, sig.args[0], args[0], args[1], _llvm(vector))
        builder.store(args[2], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic  # type: ignore[untyped-decorator]
def load_scalar(typing: Any, array: Any, offset: Any, dtype: Any) -> Any:
    """One little-endian scalar of `dtype` from byte `offset` of a uint8 array, at any alignment."""
    element = dtype.instance_type

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _pointer(context, builder, sig.args[0], args[0], args[1], _LLVM_ELEMENTS[element])
        return builder.load(place, align=1)

    return element(array, types.intp, dtype), code


@intrinsic  # type: ignore[untyped-decorator]
def store_scalar(typing: Any, array: Any, offset: Any, value: Any) -> Any:
    """Write a scalar, little-endian, to byte `offset` of a uint8 array, at any alignment."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _pointer(context, builder, sig.args[0], args[0], args[1], args[2].type)
        builder.store(args[2], place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), code


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def transpose_tile(
    typing: Any, source: Any, starts: Any, first: Any, offset: Any, target: Any, at: Any, stride: Any, lanes: Any
) -> Any:
    """Turn a square of `lanes` x `lanes` elements (a power of two): row r is read from `source[starts[first + r] + offset]`
    on, and `target[at + column * stride + r]` receives its columns. `source` and `target` are contiguous, of one type;
    `starts` is intp."""
    size = _literal(lanes)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source_type, starts_type, target_type = sig.args[0], sig.args[1], sig.args[4]
        vector = ir.VectorType(_LLVM_ELEMENTS[source_type.dtype], size)
        align, index = source_type.dtype.bitwidth // 8, args[2].type
        rows = []
        for row in range(size):
            number = builder.add(args[2], ir.Constant(index, row))
            start = builder.load(_pointer(context, builder, starts_type, args[1], number, index))
            place = _pointer(context, builder, source_type, args[0], builder.add(start, args[3]), vector)
            rows.append(builder.load(place, align=align))
        for column, value in enumerate(_transposed(builder, rows)):
            number = builder.add(args[5], builder.mul(args[6], ir.Constant(index, column)))
            builder.store(value, _pointer(context, builder, target_type, args[4], number, vector), align=align)
        return context.get_dummy_value()

    return types.void(source, starts, types.intp, types.intp, target, types.intp, types.intp, lanes), code


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of a square of vectors: at each step, lanes whose index has the step's bit change places with the rows
    whose index has it."""
    size = len(rows)
    step = 1
    while step < size:
        low = [lane if not lane & step else size + lane - step for lane in range(size)]
        high = [lane + step if not lane & step else size + lane for lane in range(size)]
        masks = [ir.Constant(ir.VectorType(_I32, size), pattern) for pattern in (low, high)]
        turned = list(rows)
        for row in range(size):
            if not row & step:
                for target, mask in zip((row, row + step), masks, strict=True):
                    turned[target] = builder.shuffle_vector(rows[row], rows[row + step], mask)
        rows = turned
        step *= 2
    return rows


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line that holds element `index`."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _pointer(context, builder, sig.args[0], args[0], args[1], ir.IntType(8))
        options = [ir.Constant(_I32, value) for value in (0, 3, 1)]
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, *options])
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def splat(typing: Any, scalar: Any, lanes: Any) -> Any:
    """The scalar in every lane; its type is the element type."""
    vector = Vector(types.unliteral(scalar), _literal(lanes))

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _broadcast(builder, args[0], vector.lanes)

    return vector(vector.element, lanes), code


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def lane(typing: Any, vector: Any, index: Any) -> Any:
    """One lane as a scalar."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], ir.Constant(_I32, _literal(index)))

    return vector.element(vector, index), code


# Operators


def _operator(symbol: Callable[..., Any], emit: Callable[[Any, Vector, Any, Any], Any], *, compares: bool = False) -> None:
    """Teach numba `symbol` between two equal vectors, and between a vector and a scalar of its element type."""

    @infer_global(symbol)
    class _Template(AbstractTemplate):  # type: ignore[misc]
        key = symbol

        def generic(self, args: Any, kws: Any) -> Any:
            vector = next((kind for kind in args if isinstance(kind, Vector)), None)
            if vector is None or len(args) != 2 or not all(kind in (vector, vector.element) for kind in args):
                return None
            return signature(Vector(types.boolean, vector.lanes) if compares else vector, *args)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = next(kind for kind in sig.args if isinstance(kind, Vector))
        left, right = (
            value if isinstance(kind, Vector) else _broadcast(builder, value, vector.lanes)
            for kind, value in zip(sig.args, args, strict=True)
        )
        return emit(builder, vector, left, right)

    for operands in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(symbol, *operands)(lower)


def _arithmetic(float_name: str, integer_name: str) -> Callable[[Any, Vector, Any, Any], Any]:
    return lambda builder, vector, a, b: getattr(builder, float_name if vector.is_float else integer_name)(a, b)


def _comparison(sign: str) -> Callable[[Any, Vector, Any, Any], Any]:
    def emit(builder: Any, vector: Vector, a: Any, b: Any) -> Any:
        if vector.is_float:
            # NaN compares as in C: ordered for everything but "!=".
            compare = builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered
        else:
            compare = builder.icmp_signed if vector.is_signed else builder.icmp_unsigned
        return compare(sign, a, b)

    return emit


_operator(operator.add, _arithmetic("fadd", "add"))
_operator(operator.sub, _arithmetic("fsub", "sub"))
_operator(operator.mul, _arithmetic("fmul", "mul"))
_operator(operator.truediv, lambda builder, vector, a, b: builder.fdiv(a, b))
_operator(operator.and_, lambda builder, vector, a, b: builder.and_(a, b))
_operator(operator.or_, lambda builder, vector, a, b: builder.or_(a, b))
_operator(operator.xor, lambda builder, vector, a, b: builder.xor(a, b))
_operator(operator.lshift, lambda builder, vector, a, b: builder.shl(a, b))
_operator(operator.rshift, lambda builder, vector, a, b: (builder.ashr if vector.is_signed else builder.lshr)(a, b))
for _symbol, _sign in (
    (operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">="), (operator.eq, "=="), (operator.ne, "!="),
):  # fmt: skip
    _operator(_symbol, _comparison(_sign), compares=True)


@infer_global(operator.neg)
class _NegateTemplate(AbstractTemplate):  # type: ignore[misc]
    key = operator.neg

    def generic(self, args: Any, kws: Any) -> Any:
        return signature(args[0], args[0]) if isinstance(args[0], Vector) and args[0].is_float else None


@lower_builtin(operator.neg, Vector)  # type: ignore[untyped-decorator]
def _negate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])


@infer_global(operator.invert)
class _InvertTemplate(AbstractTemplate):  # type: ignore[misc]
    key = operator.invert

    def generic(self, args: Any, kws: Any) -> Any:
        return signature(args[0], args[0]) if isinstance(args[0], Vector) and not args[0].is_float else None


@lower_builtin(operator.invert, Vector)  # type: ignore[untyped-decorator]
def _invert(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.not_(args[0])


# Lane by lane


def _float_intrinsic(name: str, arity: int, note: str) -> Any:
    """An LLVM float intrinsic on equal vectors, as a numba intrinsic."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        return _call(builder, f"llvm.{name}.{_suffix(kind)}", kind, list(args))

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
    """The nearest integer, halves away from zero, as C's `roundf`: the integer part after adding just under a half, since
    LLVM's own `round` calls the C library where the machine has no instruction."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        below_half = ir.Constant(kind, [0.5 - 2.0**-25] * kind.count)
        signed = _call(builder, f"llvm.copysign.{_suffix(kind)}", kind, [below_half, args[0]])
        return _call(builder, f"llvm.trunc.{_suffix(kind)}", kind, [builder.fadd(args[0], signed)])

    return x(x), code


@intrinsic  # type: ignore[untyped-decorator]
def select(typing: Any, mask: Any, a: Any, b: Any) -> Any:
    """Lane by lane `a` where the mask is true, else `b`; `a` and `b` are vectors of one type."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(*args)

    return a(mask, a, a), code


@intrinsic  # type: ignore[untyped-decorator]
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """`a < b ? a : b` in each lane."""
    return a(a, a), lambda context, builder, sig, args: builder.select(_comparison("<")(builder, a, *args), *args)


@intrinsic  # type: ignore[untyped-decorator]
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """`a > b ? a : b` in each lane."""
    return a(a, a), lambda context, builder, sig, args: builder.select(_comparison(">")(builder, a, *args), *args)


@intrinsic  # type: ignore[untyped-decorator]
def convert(typing: Any, vector: Any, dtype: Any) -> Any:
    """Each lane as another number type, by C's rules (a float truncates towards zero and must be in range)."""
    target = Vector(dtype.instance_type, vector.lanes)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, kind = args[0], _llvm(target)
        if vector.is_float and target.is_float:
            return builder.fpext(value, kind) if target.element.bitwidth > vector.element.bitwidth else builder.fptrunc(value, kind)
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
    """The same bits, as elements of `dtype`: the lane count follows from the sizes."""
    element = dtype.instance_type
    target = Vector(element, vector.lanes * vector.element.bitwidth // element.bitwidth)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _llvm(target))

    return target(vector, dtype), code


def shuffle(*pattern: int) -> Any:
    """An intrinsic `f(a, b)` whose lane i is lane `pattern[i]` of `a` followed by `b`. Make it once, in a module constant."""

    def shuffled(typing: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.shuffle_vector(*args, ir.Constant(ir.VectorType(_I32, len(pattern)), list(pattern)))

        return Vector(a.element, len(pattern))(a, a), code

    return intrinsic(shuffled)


@intrinsic  # type: ignore[untyped-decorator]
def lookup(typing: Any, table: Any, index: Any) -> Any:
    """Lane i is lane `index[i] % lanes` of the float32 `table`; `index` is int32. One instruction with AVX2 (8 lanes) and
    AVX-512 (16), a load per lane elsewhere."""
    instructions = {8: ("avx2", "avx2.permps"), 16: ("avx512f", "avx512.permvar.sf.512")}
    feature, name = instructions.get(table.lanes, ("", ""))

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values, places = args
        if feature in machine_features():
            return _call(builder, f"llvm.x86.{name}", values.type, [values, places])
        places = builder.and_(places, ir.Constant(places.type, [table.lanes - 1] * table.lanes))
        result = ir.Constant(values.type, ir.Undefined)
        for number in range(table.lanes):
            here = ir.Constant(_I32, number)
            found = builder.extract_element(values, builder.extract_element(places, here))
            result = builder.insert_element(result, found, here)
        return result

    return table(table, index), code


def byte_table(*values: int) -> Any:
    """An intrinsic `f(index)` whose lane i is `values[index[i]]`: 16 values of -128..127, `index` uint8 lanes below 16, the
    result int8. Make it once, in a module constant. A byte shuffle where the machine has one."""

    def looked_up(typing: Any, index: Any) -> Any:
        result = Vector(types.int8, index.lanes)
        name = {16: "ssse3.pshuf.b.128", 32: "avx2.pshuf.b", 64: "avx512.pshuf.b.512"}.get(index.lanes, "")
        feature = {16: "ssse3", 32: "avx2", 64: "avx512bw"}.get(index.lanes, "")

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = args[0].type
            if feature in machine_features():
                table = ir.Constant(kind, [value & 255 for value in values] * (index.lanes // 16))
                return _call(builder, f"llvm.x86.{name}", kind, [table, args[0]])
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


# Across lanes


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
    """The mask of 8, 16, 32 or 64 lanes as an unsigned integer of so many bits, lane 0 the lowest."""
    integer = getattr(types, f"uint{mask.lanes}")

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(mask.lanes))

    return integer(mask), code


@intrinsic  # type: ignore[untyped-decorator]
def bits_mask(typing: Any, bits: Any) -> Any:
    """The mask whose lanes are the bits of an unsigned integer, lane 0 the lowest: `mask_bits` undone."""
    mask = Vector(types.boolean, bits.bitwidth)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _llvm(mask))

    return mask(bits), code


@intrinsic  # type: ignore[untyped-decorator]
def first_lane(typing: Any, mask: Any) -> Any:
    """The index of the first lane whose mask is true; the number of lanes where none is."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = ir.IntType(mask.lanes)
        false = ir.Constant(ir.IntType(1), 0)
        count = _call(builder, f"llvm.cttz.i{mask.lanes}", bits, [builder.bitcast(args[0], bits), false])
        return builder.zext(count, ir.IntType(64)) if mask.lanes < 64 else count

    return types.intp(mask), code


@intrinsic  # type: ignore[untyped-decorator]
def sum_lanes(typing: Any, vector: Any) -> Any:
    """The sum of the lanes. Floats are added pairwise (halves onto halves): for results that need no fixed order."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind, element = args[0].type, args[0].type.element
        if not vector.is_float:
            return _call(builder, f"llvm.vector.reduce.add.{_suffix(kind)}", element, [args[0]])
        value, lanes = args[0], vector.lanes
        while lanes > 1:
            lanes //= 2
            halves = [
                builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(_I32, lanes), list(range(first, first + lanes))))
                for first in (0, lanes)
            ]
            value = builder.fadd(*halves)
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return vector.element(vector), code


@intrinsic  # type: ignore[untyped-decorator]
def max_lanes(typing: Any, vector: Any) -> Any:
    """The largest lane; float lanes must not be NaN."""
    return _extreme_lane(vector, ">", "max")


@intrinsic  # type: ignore[untyped-decorator]
def min_lanes(typing: Any, vector: Any) -> Any:
    """The smallest lane; float lanes must not be NaN."""
    return _extreme_lane(vector, "<", "min")


def _extreme_lane(vector: Vector, sign: str, name: str) -> Any:
    """Floats by comparing halves with halves: LLVM's own reduction takes extra care of NaN in every step."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, lanes = args[0], vector.lanes
        if not vector.is_float:
            reduction = f"llvm.vector.reduce.{'s' if vector.is_signed else 'u'}{name}.{_suffix(value.type)}"
            return _call(builder, reduction, value.type.element, [value])
        while lanes > 1:
            lanes //= 2
            halves = [
                builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(_I32, lanes), list(range(first, first + lanes))))
                for first in (0, lanes)
            ]
            value = builder.select(_comparison(sign)(builder, vector, *halves), *halves)
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return vector.element(vector), code


# Integer multiply-add


def _deinterleaved(builder: Any, value: Any, ways: int, wide: ir.Type, extend: str) -> list[Any]:
    """The lanes of `value` at i, i + ways, ... for each i below `ways`, widened."""
    lanes = value.type.count
    parts = []
    for first in range(ways):
        pattern = ir.Constant(ir.VectorType(_I32, lanes // ways), list(range(first, lanes, ways)))
        part = builder.shuffle_vector(value, value, pattern)
        parts.append(getattr(builder, extend)(part, ir.VectorType(wide, lanes // ways)))
    return parts


def _generic_dot(builder: Any, a: Any, b: Any, ways: int, wide: ir.Type, extend_a: str) -> Any:
    """sum over `ways` neighbouring lanes of a * b in `wide` integers, from portable IR."""
    total = None
    for x, y in zip(
        _deinterleaved(builder, a, ways, wide, extend_a), _deinterleaved(builder, b, ways, wide, "sext"), strict=True
    ):
        product = builder.mul(x, y)
        total = product if total is None else builder.add(total, product)
    return total


_AVX512_WIDTHS: Final[Mapping[int, str]] = {16: "avx512vl", 32: "avx512vl", 64: "avx512f"}


@intrinsic  # type: ignore[untyped-decorator]
def dot_pairs(typing: Any, a: Any, b: Any) -> Any:
    """int16 vectors to int32: lane i is a[2i] * b[2i] + a[2i+1] * b[2i+1]."""
    lanes = a.lanes // 2
    result = Vector(types.int32, lanes)
    instructions = {8: ("sse2", "sse2.pmadd.wd"), 16: ("avx2", "avx2.pmadd.wd"), 32: ("avx512bw", "avx512.pmaddw.d.512")}
    feature, name = instructions.get(a.lanes, ("", ""))

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if feature in machine_features():
            return _call(builder, f"llvm.x86.{name}", _llvm(result), list(args))
        return _generic_dot(builder, args[0], args[1], 2, _I32, "sext")

    return result(a, a), code


def _unsigned_quads(builder: Any, quads: ir.VectorType, total: Any, x: Any, y: Any) -> Any:
    """total + groups of four of x (uint8) * y (int8)."""
    features, bits = machine_features(), 8 * x.type.count
    if "avx512vnni" in features and _AVX512_WIDTHS.get(x.type.count) in features:
        words = [builder.bitcast(value, quads) for value in (x, y)]
        return _call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", quads, [total, *words])
    if bits == 256 and "avx2" in features:
        pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(ir.IntType(16), 16), [x, y])
        ones = ir.Constant(ir.VectorType(ir.IntType(16), 16), [1] * 16)
        return builder.add(total, _call(builder, "llvm.x86.avx2.pmadd.wd", quads, [pairs, ones]))
    return builder.add(total, _generic_dot(builder, x, y, 4, _I32, "zext"))


def _signed_quads(builder: Any, quads: ir.VectorType, total: Any, x: Any, y: Any) -> Any:
    """total + groups of four of x (int8) * y (int8), by way of the unsigned instruction."""
    features, bits = machine_features(), 8 * x.type.count
    if "avx512vnni" in features and _AVX512_WIDTHS.get(x.type.count) in features:
        # x ^ 0x80 is x + 128 as an unsigned number; what 128 adds is taken away again. Exact: nothing saturates.
        offset = ir.Constant(x.type, [-128] * x.type.count)
        surplus = _unsigned_quads(builder, quads, ir.Constant(quads, [0] * quads.count), offset, y)
        return builder.sub(_unsigned_quads(builder, quads, total, builder.xor(x, offset), y), surplus)
    if bits == 256 and "avx2" in features:
        # |x| * (y with x's sign): at most 128 * 127 * 2 in a pair, which fits an int16.
        moved = _call(builder, "llvm.x86.avx2.psign.b", y.type, [y, x])
        magnitude = _call(builder, "llvm.x86.avx2.psign.b", x.type, [x, x])
        return _unsigned_quads(builder, quads, total, magnitude, moved)
    return builder.add(total, _generic_dot(builder, x, y, 4, _I32, "sext"))


@intrinsic  # type: ignore[untyped-decorator]
def dot_quads(typing: Any, accumulator: Any, a: Any, b: Any) -> Any:
    """accumulator + groups of four: lane i adds a[4i..4i+3] . b[4i..4i+3]; a uint8 or int8, b int8, accumulator int32.

    Exact for int8 `a` with b >= -127, and for uint8 `a` as long as each sum of two neighbouring products fits an int16
    (true for a <= 128): the AVX2 instruction saturates there.
    """
    quads, emit = _llvm(accumulator), _signed_quads if a.is_signed else _unsigned_quads

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, quads, *args)

    return accumulator(accumulator, a, b), code
