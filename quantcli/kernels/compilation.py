"""When kernels are compiled, and in how many processes.

A kernel is compiled when it is first called with arguments of some types. Compiling all that a task needs one by one would
leave all processors but one idle, because numba compiles under the GIL. So the first call that finds its kernel missing
from the cache has all missing kernels of the task compiled, by two processes.

Which these are is found by tracing: the task itself is run, and its calls of kernels are recorded instead of executed. So
there is no second list of kernels and their types. Where no kernel is missing, nothing is traced.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numba.core.dispatcher import Dispatcher

from quantcli.kernels.second_process import SecondProcess, can_help

Report = Callable[[int], Callable[[], Any]]
"""Called before kernels are compiled, with their count. Returns a function that is called after each of them."""


@dataclass(frozen=True)
class KernelCall:
    """A kernel and numba's types of the arguments that it is called with."""

    kernel: Any
    types: tuple[Any, ...]

    def is_compiled(self) -> bool:
        """Whether it is compiled, in this process or in the cache on disk."""
        return self.types in self.kernel.overloads or self.kernel._cache.holds(self.types, self.kernel.targetctx)

    def compile(self) -> None:
        """Load it from the cache, or compile it."""
        self.kernel.compile(self.types)


def _silent(count: int) -> Callable[[], None]:
    return lambda: None


_report: ContextVar[Report] = ContextVar("report", default=_silent)
_expected: ContextVar[Callable[[], Any] | None] = ContextVar("expected", default=None)
_recorded: ContextVar[list[KernelCall] | None] = ContextVar("recorded", default=None)
_seconds: ContextVar[float] = ContextVar("seconds", default=0.0)


def use_report(report: Report) -> None:
    """Have `report` called when kernels are compiled by calls from this thread."""
    _report.set(report)


@contextmanager
def expecting(task: Callable[[], Any]) -> Iterator[None]:
    """Within it, the first missing kernel has all kernels compiled that `task` calls. `task` is traced: see `trace`."""
    token = _expected.set(task)
    try:
        yield
    finally:
        _expected.reset(token)


def compile_ahead(task: Callable[[], Any]) -> None:
    """Compile the kernels that `task` calls, or load them from the cache, so that nothing waits for them later.

    `task` is traced: see `trace`.
    """
    with _stopped_clock():
        kernels = trace(task)
        _compile_missing(kernels)
        for kernel in kernels:
            kernel.compile()


def running_seconds() -> float:
    """A clock for speeds: `time.perf_counter`, but it stands still while calls from this thread compile or load kernels."""
    return time.perf_counter() - _seconds.get()


def tracing() -> bool:
    """Whether calls of kernels are recorded and not executed, so that arrays have no meaningful contents."""
    return _recorded.get() is not None


def trace(task: Callable[[], Any]) -> list[KernelCall]:
    """The kernels that `task` calls, in the order of their first calls.

    Its calls of kernels give 0 and change no array, so `task` must not depend on their results. If it raises an error
    because of that, the list ends there.
    """
    recorded: list[KernelCall] = []
    token = _recorded.set(recorded)
    try:
        with np.errstate(all="ignore"):
            task()
    except Exception:  # whatever is wrong shows when the task is run
        pass
    finally:
        _recorded.reset(token)
    return list(dict.fromkeys(recorded))


def record(kernel: Any, arguments: Sequence[Any]) -> None:
    """Record a call of a kernel while a task is traced."""
    recorded = _recorded.get()
    if recorded is not None:
        recorded.append(_call(kernel, arguments))


def first_call(kernel: Any, *arguments: Any) -> Any:
    """numba's `Dispatcher._compile_for_args` for kernels: the function to call, where `kernel` is first called with such
    arguments."""
    if tracing():
        record(kernel, arguments)
        return _no_result
    call = _call(kernel, arguments)
    with _stopped_clock():
        if not call.is_compiled():
            task = _expected.get()
            _compile_missing([call, *(trace(task) if task else ())])
        return Dispatcher._compile_for_args(kernel, *arguments)


def _no_result(*arguments: Any) -> int:
    return 0


def _call(kernel: Any, arguments: Sequence[Any]) -> KernelCall:
    return KernelCall(kernel, tuple(map(kernel.typeof_pyval, arguments)))


@contextmanager
def _stopped_clock() -> Iterator[None]:
    begin, before = time.perf_counter(), _seconds.get()
    try:
        yield
    finally:
        _seconds.set(before + time.perf_counter() - begin)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Without the collector of reference cycles: a compilation allocates many objects that live until its end, so that
    collections take 4 percent of its time and free little."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _compile_missing(kernels: Sequence[KernelCall]) -> None:
    """Compile those that neither this process nor the cache has, and say so.

    A second process compiles part of them into the cache, where it can. What it does not finish is compiled here.
    """
    missing = [kernel for kernel in dict.fromkeys(kernels) if not kernel.is_compiled()]
    if not missing:
        return
    advance, lock, waiting = _report.get()(len(missing)), Lock(), set(range(len(missing)))

    def done(number: int) -> None:
        with lock:
            if number in waiting:
                waiting.remove(number)
                advance()

    if len(missing) > 1 and can_help():
        with SecondProcess([(kernel.kernel, kernel.types) for kernel in missing], done) as second, _no_collections():
            for number in second.taken():
                missing[number].compile()
                done(number)
    with _no_collections():
        for number, kernel in enumerate(missing):
            kernel.compile()  # from the cache, where the second process has compiled it
            done(number)
