"""A process that compiles kernels into the cache on disk, beside this one: numba compiles under the GIL.

Both processes take kernels from one list, the largest first, until none is left. So neither waits while there is a kernel
to begin. What is left of the list is in a pipe that both read from. This process could not hand out the kernels itself: it
would have to wait for its own compilation to release the GIL, for up to two seconds.

The second process ends when its input is closed, so also when this one is killed. If it fails, its kernels are compiled
here.
"""

from __future__ import annotations

import gc
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import IO, Any, Final

from quantcli.core.isolated import worker_command
from quantcli.kernels.kernel_cache import WRITING, KernelCache, keeps_kernels
from quantcli.kernels.pickling import packed

_NUMBER: Final = struct.Struct("<H")
"""The number of a kernel in the list, as it is in a pipe."""


def can_help() -> bool:
    """Whether the system can start such a process, there is a processor for it, and a cache to hand over its results."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return os.name == "posix" and processors > 1 and keeps_kernels()


class SecondProcess:
    """The process that compiles part of `kernels`, pairs of a kernel and the types of its arguments. `with` ends it.

    `done` is called from another thread, with the number of each kernel that it has compiled.
    """

    def __init__(self, kernels: Sequence[tuple[Any, Any]], done: Callable[[int], None]) -> None:
        left, put = os.pipe()
        self._left = left
        self._process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):
            self._process = subprocess.Popen(
                worker_command(f"{__name__}:serve"), bufsize=0, start_new_session=True, pass_fds=[left],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        tasks: list[bytes] = []
        with suppress(Exception):  # pickling code relies on much of numba; what cannot be pickled is compiled here
            tasks = [packed(kernel) for kernel in kernels]
        if len(tasks) == len(kernels):
            # The size of the code is about proportional to the time to compile it.
            order = sorted(range(len(tasks)), key=lambda number: -len(tasks[number]))
            os.write(put, b"".join(map(_NUMBER.pack, order)))
        os.close(put)
        self._thread = Thread(target=self._attend, args=(tasks, done), name="compile", daemon=True)
        self._thread.start()

    def __enter__(self) -> SecondProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait()
            self._thread.join()
            self._process.stdout.close()
        os.close(self._left)

    def taken(self) -> Iterator[int]:
        """The numbers of the kernels that this process is to compile. Ends when neither process has any left to begin."""
        yield from _numbers(self._left)
        self._thread.join()

    def _attend(self, tasks: list[bytes], done: Callable[[int], None]) -> None:
        """Send all tasks, and receive the numbers of those that are done, until the process ends."""
        if self._process is None:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError, ValueError):  # it has failed, or its input was closed
            _write(self._process.stdin, pickle.dumps((self._left, tasks)))
            for number in _numbers(self._process.stdout.fileno()):
                done(number)


def _numbers(pipe: int) -> Iterator[int]:
    while len(number := os.read(pipe, _NUMBER.size)) == _NUMBER.size:
        yield _NUMBER.unpack(number)[0]


def _write(pipe: IO[bytes], content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[pipe.write(rest) :]


def serve() -> None:
    """Compile kernels of the list that comes on stdin, and write their numbers to stdout."""
    left, tasks = pickle.load(sys.stdin.buffer)
    Thread(target=_end_with_parent, daemon=True).start()
    gc.disable()  # as in the first process
    for number in _numbers(left):
        kernel, types = pickle.loads(tasks[number])
        kernel._cache = KernelCache(kernel.py_func)
        kernel.compile(types)
        os.write(sys.stdout.fileno(), _NUMBER.pack(number))
    os._exit(0)  # not by returning: the other thread reads from stdin


def _end_with_parent() -> None:
    """End this process when nobody waits for it any more, but not while it writes a file."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    with WRITING:
        os._exit(0)
