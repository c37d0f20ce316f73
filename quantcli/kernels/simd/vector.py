"""The vector type, and helpers for lowering its operations to LLVM IR."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from llvmlite import binding, ir
from numba.core import cgutils, config, types
from numba.core.extending import models, register_model

_SUM_OF_PRODUCTS: Final = """
define i32 @sum_of_products(<16 x i8> %x, <16 x i8> %y) {
  %wide_x = sext <16 x i8> %x to <16 x i32>
  %wide_y = sext <16 x i8> %y to <16 x i32>
  %products = mul <16 x i32> %wide_x, %wide_y
  %sum = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %products)
  ret i32 %sum
}
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)
"""


def has_arm_dot_products(machine: Any) -> bool:
    """Whether LLVM uses ARM's dot product instructions for a target machine. On Linux it does not list this feature of the
    host, but knows it from the processor's name."""
    module = binding.parse_assembly(_SUM_OF_PRODUCTS)
    module.triple = machine.triple
    return "sdot" in machine.emit_assembly(module)


@cache
def machine_features() -> frozenset[str]:
    """LLVM's names of the host's CPU features. Empty with `QUANTCLI_SIMD=generic`, which restricts kernels to portable IR
    (the tests run both)."""
    if os.environ.get("QUANTCLI_SIMD") == "generic":
        return frozenset()
    host = binding.get_host_cpu_features()
    features = frozenset(name for name, present in host.items() if present)
    if platform.machine() in ("aarch64", "arm64"):
        # The machine that numba compiles for.
        chosen = {"cpu": config.CPU_NAME or binding.get_host_cpu_name(), "features": config.CPU_FEATURES or host.flatten()}
        if has_arm_dot_products(binding.Target.from_default_triple().create_target_machine(**chosen)):
            features |= {"dotprod"}
    return features


LANES: Final = 16 if "avx512f" in machine_features() else 8
"""Lanes of a float32 vector: in the quantizers, the blocks searched at the same time."""


class Vector(types.Type):  # type: ignore[misc]
    """The numba type of `lanes` elements in one vector register (or as many as it takes)."""

    def __init__(self, element: types.Type, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"Vector({element}, {lanes})")

    @property
    def is_float(self) -> bool:
        """Whether the lanes are floating-point numbers."""
        return isinstance(self.element, types.Float)

    @property
    def is_signed(self) -> bool:
        """Whether the lanes are signed integers."""
        return isinstance(self.element, types.Integer) and bool(self.element.signed)


LLVM_ELEMENTS: Final[Mapping[types.Type, ir.Type]] = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.boolean: ir.IntType(1),
    **{getattr(types, f"{sign}int{bits}"): ir.IntType(bits) for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
I32: Final = ir.IntType(32)


def llvm_type(vector: Vector) -> ir.VectorType:
    """The LLVM type of a vector."""
    return ir.VectorType(LLVM_ELEMENTS[vector.element], vector.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, llvm_type(vector))


def literal(value: types.Type) -> int:
    """The value of a literal integer argument.

    Raises:
        TypeError: if it is not a compile-time constant.
    """
    if not isinstance(value, types.IntegerLiteral):
        raise TypeError("a lane count must be a literal integer or a module constant")
    return int(value.literal_value)


def broadcast(builder: Any, scalar: Any, lanes: int) -> Any:
    """Broadcast: a vector with the scalar in every lane."""
    vector = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, target: ir.Type) -> Any:
    """The address of element `index` from an array or base address, as a pointer to `target`."""
    data = array if isinstance(array_type, types.CPointer) else context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), target.as_pointer())


def call(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    """Call an LLVM intrinsic by name."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [value.type for value in arguments]), name
    )
    return builder.call(function, arguments)


def suffix(vector: ir.VectorType) -> str:
    """The suffix of LLVM intrinsic names for a vector type, such as `v8f32`."""
    element = vector.element
    kind = {ir.FloatType: "f32", ir.DoubleType: "f64"}.get(type(element)) or f"i{element.width}"
    return f"v{vector.count}{kind}"
