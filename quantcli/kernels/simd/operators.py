"""Python operators on vectors of one type, and on a vector and a scalar of its element type."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from quantcli.kernels.simd.vector import Vector, broadcast


def _operator(symbol: Callable[..., Any], emit: Callable[[Any, Vector, Any, Any], Any], *, compares: bool = False) -> None:
    """Register `symbol` with numba for two vectors of one type, and for a vector and a scalar of its element type."""

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
            value if isinstance(kind, Vector) else broadcast(builder, value, vector.lanes)
            for kind, value in zip(sig.args, args, strict=True)
        )
        return emit(builder, vector, left, right)

    for operands in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(symbol, *operands)(lower)


def _arithmetic(float_name: str, integer_name: str) -> Callable[[Any, Vector, Any, Any], Any]:
    return lambda builder, vector, a, b: getattr(builder, float_name if vector.is_float else integer_name)(a, b)


def comparison(sign: str) -> Callable[[Any, Vector, Any, Any], Any]:
    """The emitter of a comparison of two vectors. NaN compares as in C."""

    def emit(builder: Any, vector: Vector, a: Any, b: Any) -> Any:
        if vector.is_float:
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
_operator(operator.lt, comparison("<"), compares=True)
_operator(operator.le, comparison("<="), compares=True)
_operator(operator.gt, comparison(">"), compares=True)
_operator(operator.ge, comparison(">="), compares=True)
_operator(operator.eq, comparison("=="), compares=True)
_operator(operator.ne, comparison("!="), compares=True)


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
