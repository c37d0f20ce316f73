"""Parallel loops in kernels: the body is outlined into a function of its own, whose address the thread pool runs.

They replace numba's `prange`, for three reasons. Its threading layers either spin or sleep, and neither is good both on an
idle machine and beside other processes. It compiles each loop as a kernel of its own with several wrappers, which took
almost half of the time to the first token with a cold cache. And its default layer may not be entered from two threads.
"""

from __future__ import annotations

from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from quantcli.kernels.threads.pool import launch

_WORD = ir.IntType(64)
_HALF = ir.IntType(32)


@intrinsic  # type: ignore[untyped-decorator]
def parallel_for(typing: Any, pool: Any, count: Any, body: Any, arguments: Any) -> Any:
    """Call `body(index, *arguments)`, an `inline` function without a result, for each index below `count`.

    pool       the first argument of the kernel (`parallel_kernel`), or 0 for a loop too short to share
    arguments  a tuple of numbers, arrays and tuples of them. Bodies may write into arrays

    The calls are in any order and on any thread. Raises MemoryError if one runs out of memory.
    """
    index_and_arguments = (types.int64, *arguments.types)
    signature = body.get_call_type(typing, index_and_arguments, {})
    compiled = body.dispatcher.get_compile_result(signature)
    launch_types = (types.int64,) * 4
    launcher = cast(Any, launch).get_compile_result(types.none(*launch_types))

    def emit(context: Any, builder: Any, _: Any, values: Any) -> Any:
        parts = [builder.extract_value(values[3], place) for place in range(len(arguments.types))]
        record = ir.LiteralStructType([part.type for part in parts])
        place = cgutils.alloca_once(builder, record)
        for number, part in enumerate(parts):
            builder.store(part, _member(builder, place, number))
        tasks = _outlined(context, builder, compiled, index_and_arguments, record)
        context.add_linking_libs([compiled.library, launcher.library])
        function = context.declare_function(builder.module, launcher.fndesc)
        given = [values[0], values[1], builder.ptrtoint(tasks, _WORD), builder.ptrtoint(place, _WORD)]
        status, _ = context.call_conv.call_function(builder, function, types.none, launch_types, given)
        with cgutils.if_unlikely(builder, status.is_error):
            context.call_conv.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, body, arguments), emit


def _outlined(context: Any, builder: Any, compiled: Any, kinds: Any, record: Any) -> Any:
    """The function (context, first, last) -> status, all words, that runs the body for indices first to last - 1. `context`
    is the address of the arguments, a `record`. The status is 1 where a body failed."""
    name = builder.module.get_unique_name(f"{builder.function.name}.tasks")
    function = ir.Function(builder.module, ir.FunctionType(_WORD, [_WORD, _WORD, _WORD]), name)
    function.linkage = "internal"
    inner = ir.IRBuilder(function.append_basic_block("entry"))
    place = inner.inttoptr(function.args[0], record.as_pointer())
    parts = [
        _borrowed(inner, kind, inner.load(_member(inner, place, number))) for number, kind in enumerate(kinds[1:])
    ]
    body = context.declare_function(builder.module, compiled.fndesc)
    result = compiled.signature.return_type
    with cgutils.for_range_slice(inner, function.args[1], function.args[2], _WORD(1), _WORD) as (index, _):
        status, _ = context.call_conv.call_function(inner, body, result, kinds, [index, *parts])
        with inner.if_then(status.is_error, likely=False):
            inner.ret(_WORD(1))
    inner.ret(_WORD(0))
    return function


def _member(builder: Any, place: Any, number: int) -> Any:
    return builder.gep(place, [_HALF(0), _HALF(number)])


def _borrowed(builder: Any, kind: Any, value: Any) -> Any:
    """A value whose arrays have no reference count: the launching kernel holds them until the loop ends. With a count, all
    threads would write to one word."""
    if isinstance(kind, types.Array):
        return builder.insert_value(value, ir.Constant(value.type.elements[0], None), 0)
    if isinstance(kind, types.BaseTuple):
        for number, member in enumerate(kind.types):
            part = _borrowed(builder, member, builder.extract_value(value, number))
            value = builder.insert_value(value, part, number)
    return value
