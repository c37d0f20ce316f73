"""Kernels whose loops run on several threads: `parallel_kernel`, and `parallel_for` in `loops`.

Each number of threads has a pool of its own, started when the first parallel kernel is called with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any

import numba

from quantcli.kernels.compilation import record, tracing
from quantcli.kernels.jit import kernel
from quantcli.kernels.threads.pool import POOL_CALLS, ThreadPool

_threads: ContextVar[int] = ContextVar("threads")


def use_threads(count: int | None) -> None:
    """Set the thread count of parallel kernels called from this thread. The maximum, and the default for None, is one per
    processor, or the environment variable NUMBA_NUM_THREADS."""
    _threads.set(min(count or numba.config.NUMBA_NUM_THREADS, numba.config.NUMBA_NUM_THREADS))


def thread_count() -> int:
    """The thread count of parallel kernels called from this thread."""
    return _threads.get(numba.config.NUMBA_NUM_THREADS)


def parallel_kernel(function: Callable[..., None]) -> Callable[..., None]:
    """A kernel with `parallel_for` loops. Its first parameter is the pool, which callers do not pass.

    It may be called from several threads at once. Then one call has the pool's threads and the others run alone.
    """
    compiled = kernel(function)

    @wraps(function)
    def call(*arguments: Any) -> None:
        if tracing():
            for of_pool, given in POOL_CALLS:
                record(of_pool, given)
            record(compiled, (0, *arguments))
            return
        # A child of a fork has none of its parent's threads.
        compiled(_pool(thread_count(), os.getpid()).address, *arguments)

    return call


@cache
def _pool(threads: int, process: int) -> ThreadPool:
    return ThreadPool(threads)
