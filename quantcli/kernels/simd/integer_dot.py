"""Integer multiply-add: the machine's instruction if it has one, otherwise the same result from portable IR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from quantcli.kernels.simd.vector import I32, Vector, call, llvm_type, machine_features


def _deinterleaved(builder: Any, value: Any, ways: int, wide: ir.Type, extend: str) -> list[Any]:
    """Deinterleave: the lanes of `value` at i, i + ways, ... for each i below `ways`, widened."""
    lanes = value.type.count
    parts = []
    for first in range(ways):
        pattern = ir.Constant(ir.VectorType(I32, lanes // ways), list(range(first, lanes, ways)))
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
            return call(builder, f"llvm.x86.{name}", llvm_type(result), list(args))
        return _generic_dot(builder, args[0], args[1], 2, I32, "sext")

    return result(a, a), code


@intrinsic  # type: ignore[untyped-decorator]
def dot_bytes(typing: Any, a: Any, b: Any) -> Any:
    """uint8 and int8 vectors to int16: lane i is a[2i] * b[2i] + a[2i+1] * b[2i+1], which must fit: true for a <= 128 and
    b >= -127."""
    lanes = a.lanes // 2
    result = Vector(types.int16, lanes)
    instructions = {32: ("avx2", "avx2.pmadd.ub.sw"), 64: ("avx512bw", "avx512.pmaddubs.w.512")}
    feature, name = instructions.get(a.lanes, ("", ""))

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if feature in machine_features():
            return call(builder, f"llvm.x86.{name}", llvm_type(result), list(args))
        return _generic_dot(builder, args[0], args[1], 2, ir.IntType(16), "zext")

    return result(a, b), code


@intrinsic  # type: ignore[untyped-decorator]
def narrow(typing: Any, a: Any, b: Any) -> Any:
    """int32 vectors to int16: four lanes of `a`, four of `b`, the next four of `a`, and so on. The values must fit."""
    result = Vector(types.int16, 2 * a.lanes)
    pattern = [first + side + i for first in range(0, a.lanes, 4) for side in (0, a.lanes) for i in range(4)]

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if a.lanes == 16 and "avx512bw" in machine_features():
            return call(builder, "llvm.x86.avx512.packssdw.512", llvm_type(result), list(args))
        both = builder.shuffle_vector(*args, ir.Constant(ir.VectorType(I32, len(pattern)), pattern))
        return builder.trunc(both, llvm_type(result))

    return result(a, a), code


_ARM_REGISTER: Final = 16
"""Bytes of a vector register of ARM, whose dot products are the instruction SDOT (the feature `dotprod`)."""


def emit_signed_dots(builder: Any, total: Any, x: Any, y: Any) -> Any:
    """total + dot products of four neighbouring lanes, x and y int8, by SDOT, register by register."""
    name, quads = "llvm.aarch64.neon.sdot.v4i32.v16i8", ir.VectorType(I32, _ARM_REGISTER // 4)
    parts = []
    for first in range(0, x.type.count, _ARM_REGISTER):
        few = [_lanes(builder, total, first // 4, quads.count)]
        few += [_lanes(builder, value, first, _ARM_REGISTER) for value in (x, y)]
        parts.append(call(builder, name, quads, few))
    while len(parts) > 1:
        lanes = ir.VectorType(I32, 2 * parts[0].type.count)
        both = ir.Constant(lanes, list(range(lanes.count)))
        parts = [builder.shuffle_vector(low, high, both) for low, high in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _lanes(builder: Any, value: Any, first: int, count: int) -> Any:
    """`count` lanes of a vector, from lane `first` on."""
    lanes = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
    return builder.shuffle_vector(value, value, lanes)


def _has_signed_dots(x: Any) -> bool:
    return "dotprod" in machine_features() and x.type.count % _ARM_REGISTER == 0


def _unsigned_quads(builder: Any, total: Any, x: Any, y: Any) -> Any:
    """total + dot products of four neighbouring lanes, x uint8 and y int8."""
    features, quads, bits = machine_features(), total.type, 8 * x.type.count
    if _has_signed_dots(x):
        return emit_signed_dots(builder, total, x, y)
    if "avx512vnni" in features and _AVX512_WIDTHS.get(x.type.count) in features:
        words = [builder.bitcast(value, quads) for value in (x, y)]
        return call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", quads, [total, *words])
    if bits == 256 and "avx2" in features:
        pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(ir.IntType(16), 16), [x, y])
        ones = ir.Constant(ir.VectorType(ir.IntType(16), 16), [1] * 16)
        return builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", quads, [pairs, ones]))
    return builder.add(total, _generic_dot(builder, x, y, 4, I32, "zext"))


def _signed_quads(builder: Any, total: Any, x: Any, y: Any) -> Any:
    """total + dot products of four neighbouring lanes, x and y int8, by the unsigned-by-signed instruction."""
    features, quads, bits = machine_features(), total.type, 8 * x.type.count
    if _has_signed_dots(x):
        return emit_signed_dots(builder, total, x, y)
    if "avx512vnni" in features and _AVX512_WIDTHS.get(x.type.count) in features:
        # x ^ 0x80 is x + 128 as uint8; the contribution of 128 is subtracted again. Exact: nothing saturates.
        offset = ir.Constant(x.type, [-128] * x.type.count)
        surplus = _unsigned_quads(builder, ir.Constant(quads, [0] * quads.count), offset, y)
        return builder.sub(_unsigned_quads(builder, total, builder.xor(x, offset), y), surplus)
    if bits == 256 and "avx2" in features:
        # |x| * (y with x's sign): at most 128 * 127 * 2 in a pair, which fits an int16.
        moved = call(builder, "llvm.x86.avx2.psign.b", y.type, [y, x])
        magnitude = call(builder, "llvm.x86.avx2.psign.b", x.type, [x, x])
        return _unsigned_quads(builder, total, magnitude, moved)
    return builder.add(total, _generic_dot(builder, x, y, 4, I32, "sext"))


def emit_dot_quads(builder: Any, signed: bool, total: Any, x: Any, y: Any) -> Any:
    """The code of `dot_quads`."""
    return (_signed_quads if signed else _unsigned_quads)(builder, total, x, y)


@intrinsic  # type: ignore[untyped-decorator]
def dot_quads(typing: Any, accumulator: Any, a: Any, b: Any) -> Any:
    """accumulator + dot products: lane i adds a[4i..4i+3] . b[4i..4i+3]; a uint8 or int8, b int8, accumulator int32.

    Exact for int8 `a` with b >= -127, and for uint8 `a` up to 127: the AVX2 instruction saturates sums of two neighbouring
    products to int16, and the ARM instruction multiplies signed bytes. With AVX-512 VNNI, `a` may be any uint8.
    """

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_dot_quads(builder, a.is_signed, *args)

    return accumulator(accumulator, a, b), code
