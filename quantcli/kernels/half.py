"""Casts between float32 and float16 or bfloat16, scalar or vector, rounding to nearest even.

NaN becomes a quiet NaN with the same sign, as in `ggml_compute_fp32_to_fp16` and `ggml_compute_fp32_to_bf16`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from quantcli.kernels.simd import Vector, machine_features
from quantcli.kernels.simd.vector import call

_I32 = ir.IntType(32)


def _integers(like: ir.Type, bits: int) -> ir.Type:
    kind = ir.IntType(bits)
    return ir.VectorType(kind, like.count) if isinstance(like, ir.VectorType) else kind


def _constant(kind: ir.Type, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)



def _emit_to_half(builder: Any, value: Any) -> Any:
    """float32 to float16 bits, by the F16C instruction or by integer arithmetic."""
    wide, narrow = _integers(value.type, 32), _integers(value.type, 16)
    halves = ir.VectorType(ir.HalfType(), value.type.count) if isinstance(value.type, ir.VectorType) else ir.HalfType()
    bits = builder.bitcast(value, wide)
    magnitude = builder.and_(bits, _constant(wide, 0x7FFFFFFF))
    sign = builder.and_(builder.lshr(bits, _constant(wide, 16)), _constant(wide, 0x8000))
    if "f16c" in machine_features():
        result = builder.zext(builder.bitcast(builder.fptrunc(value, halves), narrow), wide)
    else:
        result = builder.or_(sign, _half_magnitude(builder, magnitude, value.type))
    is_nan = builder.icmp_unsigned(">", magnitude, _constant(wide, 0x7F800000))
    quiet = builder.or_(sign, _constant(wide, 0x7E00))
    return builder.trunc(builder.select(is_nan, quiet, result), narrow)


def _half_magnitude(builder: Any, magnitude: Any, floats: ir.Type) -> Any:
    """Round the float32 whose bits are `magnitude` (sign cleared, not NaN) to the 15 magnitude bits of a float16."""
    wide = magnitude.type
    # Normal float16: rebias the exponent by 112, then add just under half an ulp plus the last kept bit (nearest even).
    odd = builder.and_(builder.lshr(magnitude, _constant(wide, 13)), _constant(wide, 1))
    rounded = builder.add(builder.sub(magnitude, _constant(wide, 112 << 23)), builder.add(odd, _constant(wide, 0xFFF)))
    normal = builder.lshr(rounded, _constant(wide, 13))
    # Subnormal float16: adding 0.5 aligns the last float16 bit with the last float32 bit, and the FPU rounds.
    aligned = builder.fadd(builder.bitcast(magnitude, floats), builder.bitcast(_constant(wide, 126 << 23), floats))
    subnormal = builder.sub(builder.bitcast(aligned, wide), _constant(wide, 126 << 23))
    small = builder.icmp_unsigned("<", magnitude, _constant(wide, 113 << 23))
    # 65520 and above round to infinity.
    large = builder.icmp_unsigned(">=", magnitude, _constant(wide, 0x477FF000))
    return builder.select(large, _constant(wide, 0x7C00), builder.select(small, subnormal, normal))


def _scalar_from_half(builder: Any, bits: Any) -> Any:
    """One float16's bits to float32, by the instruction for 16 of them on a register of zeros and these bits.

    LLVM's cast of a scalar inserts it into a register of LLVM's choice, and so waits for that one's last value. Where this
    was the sum of a loop, each turn waited for the one before: products of two columns took a third longer. A cast of four
    of them, LLVM turns into that of a scalar.
    """
    words, floats, first = ir.VectorType(_I32, 8), ir.VectorType(ir.FloatType(), 16), ir.Constant(_I32, 0)
    word = builder.insert_element(ir.Constant(words, [0] * 8), builder.zext(bits, _I32), first)
    halves = builder.bitcast(word, ir.VectorType(ir.IntType(16), 16))
    rounding, mask = ir.Constant(_I32, 4), ir.Constant(ir.IntType(16), 0xFFFF)
    arguments = [halves, ir.Constant(floats, ir.Undefined), mask, rounding]
    return builder.extract_element(call(builder, "llvm.x86.avx512.mask.vcvtph2ps.512", floats, arguments), first)


def _emit_from_half(builder: Any, bits: Any) -> Any:
    """float16 bits to float32, by the F16C instruction or by integer arithmetic. Exact."""
    vector = isinstance(bits.type, ir.VectorType)
    floats = ir.VectorType(ir.FloatType(), bits.type.count) if vector else ir.FloatType()
    if "f16c" in machine_features():
        if not vector and "avx512f" in machine_features():
            return _scalar_from_half(builder, bits)
        halves = ir.VectorType(ir.HalfType(), bits.type.count) if vector else ir.HalfType()
        return builder.fpext(builder.bitcast(bits, halves), floats)
    wide = _integers(floats, 32)
    value = builder.zext(bits, wide)
    sign = builder.shl(builder.and_(value, _constant(wide, 0x8000)), _constant(wide, 16))
    shifted = builder.shl(builder.and_(value, _constant(wide, 0x7FFF)), _constant(wide, 13))
    # Normal: rebias. Infinity and NaN: the exponent becomes all ones. Subnormal: an integer multiple of 2**-24.
    normal = builder.add(shifted, _constant(wide, 112 << 23))
    special = builder.or_(shifted, _constant(wide, 0x7F800000))
    unit = builder.bitcast(_constant(wide, (127 - 24) << 23), floats)
    units = builder.fmul(builder.uitofp(builder.and_(value, _constant(wide, 0x3FF)), floats), unit)
    exponent = builder.and_(value, _constant(wide, 0x7C00))
    magnitude = builder.select(
        builder.icmp_unsigned("==", exponent, _constant(wide, 0)),
        builder.bitcast(units, wide),
        builder.select(builder.icmp_unsigned("==", exponent, _constant(wide, 0x7C00)), special, normal),
    )
    return builder.bitcast(builder.or_(sign, magnitude), floats)


def _emit_to_bfloat(builder: Any, value: Any) -> Any:
    """float32 to bfloat16 bits."""
    wide = _integers(value.type, 32)
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, _constant(wide, 16)), _constant(wide, 1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, _constant(wide, 0x7FFF))), _constant(wide, 16))
    magnitude = builder.and_(bits, _constant(wide, 0x7FFFFFFF))
    quiet = builder.or_(builder.lshr(bits, _constant(wide, 16)), _constant(wide, 64))
    is_nan = builder.icmp_unsigned(">", magnitude, _constant(wide, 0x7F800000))
    return builder.trunc(builder.select(is_nan, quiet, rounded), _integers(value.type, 16))


def _emit_from_bfloat(builder: Any, bits: Any) -> Any:
    """bfloat16 bits to float32. Exact."""
    floats = ir.VectorType(ir.FloatType(), bits.type.count) if isinstance(bits.type, ir.VectorType) else ir.FloatType()
    wide = _integers(floats, 32)
    return builder.bitcast(builder.shl(builder.zext(bits, wide), _constant(wide, 16)), floats)


def _with_element(kind: types.Type, element: types.Type) -> types.Type:
    return Vector(element, kind.lanes) if isinstance(kind, Vector) else element


def _conversion(emit: Any, source: types.Type, target: types.Type, note: str) -> Any:
    def conversion(typing: Any, value: Any) -> Any:
        operand = _with_element(value, source)
        return _with_element(value, target)(operand), lambda context, builder, sig, args: emit(builder, args[0])

    conversion.__doc__ = note
    return intrinsic(conversion)


float_to_half = _conversion(_emit_to_half, types.float32, types.uint16, "float32 (scalar or vector) to half bits, uint16.")
half_to_float = _conversion(_emit_from_half, types.uint16, types.float32, "Half bits, uint16 (likewise), to float32.")
float_to_bfloat = _conversion(_emit_to_bfloat, types.float32, types.uint16, "float32 to bfloat16 bits, uint16.")
bfloat_to_float = _conversion(_emit_from_bfloat, types.uint16, types.float32, "bfloat16 bits, uint16, to float32.")
