"""What the thread pool needs of the operating system: sleeping until a word changes, yielding the processor, and a clock.

Functions of the C library are called by address, so compiled code can be kept on disk.
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
_CLOCK_MONOTONIC, _CLOCK_UPTIME_RAW = 1, 8

_RUSAGE_THREAD: Final = 1
_USAGE_WORDS, _INVOLUNTARY_SWITCHES = 18, 17
"""Words of `struct rusage` on a 64-bit Linux, and the one of involuntary context switches."""


class SystemCalls(NamedTuple):
    """Addresses of the functions that put a thread to sleep until a word changes, wake the sleeping ones, let another
    thread run on this processor, read a clock, and read a thread's resource usage; and the emitters of calls to those whose
    arguments differ by system. `usage` is 0 where the system has no such function."""

    wait: int
    wake: int
    give_way: int
    clock: int
    usage: int
    emit_wait: Callable[..., None]
    emit_wake: Callable[..., None]
    emit_clock: Callable[..., Any]


def system_calls() -> SystemCalls | None:
    """Futexes on Linux, ulocks on macOS, WaitOnAddress on Windows; None where there is none of them."""
    try:
        if sys.platform.startswith("linux") and platform.machine() in _FUTEX_CALLS:
            library = ctypes.CDLL(None)
            call, give_way, clock = map(_address, (library.syscall, library.sched_yield, library.clock_gettime))
            usage = _address(library.getrusage)
            return SystemCalls(call, call, give_way, clock, usage, _futex_wait, _futex_wake, _clock_gettime)
        if sys.platform == "darwin":
            library = ctypes.CDLL(None)
            wait, wake = _address(library.__ulock_wait), _address(library.__ulock_wake)
            give_way, clock = _address(library.sched_yield), _address(library.clock_gettime_nsec_np)
            return SystemCalls(wait, wake, give_way, clock, 0, _ulock_wait, _ulock_wake, _clock_gettime_nsec)
        if sys.platform == "win32":
            library = ctypes.WinDLL("api-ms-win-core-synch-l1-2-0")
            wait, wake = _address(library.WaitOnAddress), _address(library.WakeByAddressAll)
            give_way = _address(ctypes.WinDLL("kernel32").SwitchToThread)
            time = ctypes.WinDLL("api-ms-win-core-realtime-l1-1-1")
            clock = _address(time.QueryUnbiasedInterruptTimePrecise)
            return SystemCalls(wait, wake, give_way, clock, 0, _wait_on_address, _wake_by_address, _interrupt_time)
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


def _clock_gettime(builder: Any, function: Any) -> Any:
    time = cgutils.alloca_once(builder, ir.ArrayType(_WORD, 2))
    _call(builder, function, _HALF, _HALF(_CLOCK_MONOTONIC), time)
    seconds, rest = (builder.load(builder.gep(time, [_HALF(0), _HALF(part)])) for part in range(2))
    return builder.add(builder.mul(seconds, _WORD(10**9)), rest)


def _clock_gettime_nsec(builder: Any, function: Any) -> Any:
    return _call(builder, function, _WORD, _HALF(_CLOCK_UPTIME_RAW))


def _interrupt_time(builder: Any, function: Any) -> Any:
    time = cgutils.alloca_once(builder, _WORD)
    _call(builder, function, ir.VoidType(), time)
    return builder.mul(builder.load(time), _WORD(100))


@intrinsic  # type: ignore[untyped-decorator]
def sleep_while(typing: Any, function: Any, address: Any, value: Any) -> Any:
    """Sleep while the low half of the word at `address` is that of `value`. May return early. `function` is the address
    `SystemCalls.wait`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        calls = system_calls()
        if calls is not None:
            calls.emit_wait(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def wake_all(typing: Any, function: Any, address: Any) -> Any:
    """Wake all threads that sleep at an address. `function` is the address `SystemCalls.wake`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        calls = system_calls()
        if calls is not None:
            calls.emit_wake(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def give_way(typing: Any, function: Any) -> Any:
    """Let another thread run on this processor, if one waits for it. `function` is the address `SystemCalls.give_way`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _call(builder, args[0], _HALF)
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def nanoseconds(typing: Any, function: Any) -> Any:
    """The time of a clock that never goes back, in nanoseconds. `function` is the address `SystemCalls.clock`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        calls = system_calls()
        return _WORD(0) if calls is None else calls.emit_clock(builder, args[0])

    return types.int64(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def involuntary_switches(typing: Any, function: Any) -> Any:
    """How often another thread has taken this thread's processor. `function` is the address `SystemCalls.usage`, not 0."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        usage = cgutils.alloca_once(builder, ir.ArrayType(_WORD, _USAGE_WORDS))
        _call(builder, args[0], _HALF, _HALF(_RUSAGE_THREAD), usage)
        return builder.load(builder.gep(usage, [_HALF(0), _HALF(_INVOLUNTARY_SWITCHES)]))

    return types.int64(types.int64), emit
