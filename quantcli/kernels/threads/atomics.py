"""Atomic operations on int64 words, and threads that sleep until a word changes: what the thread pool is made of.

An address is an integer. All operations are sequentially consistent.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WORD: Final = ir.IntType(64)
_HALF: Final = ir.IntType(32)

_FUTEX_CALLS: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
"""The number of the system call `futex` by machine (Linux, `asm/unistd.h`)."""

_FUTEX_WAIT_PRIVATE, _FUTEX_WAKE_PRIVATE = 128, 129
_COMPARE_AND_WAIT, _WAKE_ALL, _EVERYONE = 1, 0x100, 0x7FFFFFFF
_FOREVER: Final = 0xFFFFFFFF


class Sleeping(NamedTuple):
    """How the system puts a thread to sleep until a word changes: the addresses of its two functions, and the emitters of
    calls to them. `give_way` is the address of the function that lets another thread run on this processor."""

    wait: int
    wake: int
    give_way: int
    emit_wait: Callable[..., None]
    emit_wake: Callable[..., None]


def system_sleeping() -> Sleeping | None:
    """Futexes on Linux, ulocks on macOS, WaitOnAddress on Windows; None where there is none of them."""
    try:
        if sys.platform.startswith("linux") and platform.machine() in _FUTEX_CALLS:
            library = ctypes.CDLL(None)
            call = _address(library.syscall)
            return Sleeping(call, call, _address(library.sched_yield), _futex_wait, _futex_wake)
        if sys.platform == "darwin":
            library = ctypes.CDLL(None)
            wait, wake = _address(library.__ulock_wait), _address(library.__ulock_wake)
            return Sleeping(wait, wake, _address(library.sched_yield), _ulock_wait, _ulock_wake)
        if sys.platform == "win32":
            library = ctypes.WinDLL("api-ms-win-core-synch-l1-2-0")
            wait, wake = _address(library.WaitOnAddress), _address(library.WakeByAddressAll)
            give_way = _address(ctypes.WinDLL("kernel32").SwitchToThread)
            return Sleeping(wait, wake, give_way, _wait_on_address, _wake_by_address)
    except (AttributeError, OSError):
        pass
    return None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _call(builder: Any, function: Any, result: Any, *arguments: Any, variadic: bool = False) -> Any:
    """Call the C function at an address."""
    fixed = [] if variadic else [argument.type for argument in arguments]
    kind = ir.FunctionType(result, fixed, var_arg=variadic)
    return builder.call(builder.inttoptr(function, kind.as_pointer()), list(arguments))


def _futex_wait(builder: Any, function: Any, address: Any, value: Any) -> None:
    number = _WORD(_FUTEX_CALLS[platform.machine()])
    _call(builder, function, _WORD, number, address, _WORD(_FUTEX_WAIT_PRIVATE), value, _WORD(0), variadic=True)


def _futex_wake(builder: Any, function: Any, address: Any) -> None:
    number = _WORD(_FUTEX_CALLS[platform.machine()])
    _call(builder, function, _WORD, number, address, _WORD(_FUTEX_WAKE_PRIVATE), _WORD(_EVERYONE), variadic=True)


def _ulock_wait(builder: Any, function: Any, address: Any, value: Any) -> None:
    _call(builder, function, _HALF, _HALF(_COMPARE_AND_WAIT), address, value, _HALF(0))


def _ulock_wake(builder: Any, function: Any, address: Any) -> None:
    _call(builder, function, _HALF, _HALF(_COMPARE_AND_WAIT | _WAKE_ALL), address, _WORD(0))


def _wait_on_address(builder: Any, function: Any, address: Any, value: Any) -> None:
    compared = cgutils.alloca_once_value(builder, value)
    _call(builder, function, _HALF, address, builder.ptrtoint(compared, _WORD), _WORD(4), _HALF(_FOREVER))


def _wake_by_address(builder: Any, function: Any, address: Any) -> None:
    _call(builder, function, ir.VoidType(), address)


def _word(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _WORD.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def atomic_load(typing: Any, address: Any) -> Any:
    """The word at an address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_word(builder, args[0]), "seq_cst", 8)

    return types.int64(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def atomic_store(typing: Any, address: Any, value: Any) -> Any:
    """Write the word at an address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _word(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def atomic_add(typing: Any, address: Any, value: Any) -> Any:
    """Add to the word at an address. Returns what it was before."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _word(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def compare_and_swap(typing: Any, address: Any, expected: Any, value: Any) -> Any:
    """Write `value` at an address if the word there is `expected`. Returns whether it was."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pair = builder.cmpxchg(_word(builder, args[0]), args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def pause(typing: Any) -> Any:
    """Tell the processor that this is a loop that waits."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        machine = platform.machine().lower()
        if machine in ("x86_64", "amd64"):
            builder.call(_instruction(builder, "llvm.x86.sse2.pause"), [])
        elif machine in ("aarch64", "arm64"):
            builder.call(_instruction(builder, "llvm.aarch64.hint", _HALF), [_HALF(1)])
        return context.get_dummy_value()

    return types.void(), emit


def _instruction(builder: Any, name: str, *arguments: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), arguments), name)


@intrinsic  # type: ignore[untyped-decorator]
def sleep_while(typing: Any, function: Any, address: Any, value: Any) -> Any:
    """Sleep while the low half of the word at `address` is that of `value`. May return early. `function` is the address
    `Sleeping.wait`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sleeping = system_sleeping()
        if sleeping is not None:
            sleeping.emit_wait(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def wake_all(typing: Any, function: Any, address: Any) -> Any:
    """Wake all threads that sleep at an address. `function` is the address `Sleeping.wake`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sleeping = system_sleeping()
        if sleeping is not None:
            sleeping.emit_wake(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def give_way(typing: Any, function: Any) -> Any:
    """Let another thread run on this processor, if one waits for it. `function` is the address `Sleeping.give_way`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _call(builder, args[0], _HALF)
        return context.get_dummy_value()

    return types.void(types.int64), emit
