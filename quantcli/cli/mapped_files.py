"""Ends the process with a message when a memory-mapped file is truncated while it is read."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from quantcli.core.display import printable


def report_truncation(*paths: Path) -> None:
    """Let SIGBUS, which the system sends for a page that a file no longer has, end the process with one line that names the
    file of `paths` that is shorter than now. Of several calls the last counts.

    Python cannot turn the signal into an exception: its own handlers run between bytecode instructions, and the instruction
    that failed would be tried again first. Windows has no such signal.
    """
    if hasattr(signal, "SIGBUS"):
        ctypes.CDLL(None).signal(signal.SIGBUS, _handler(tuple((path, _size(path)) for path in paths)))


@cache
def _handler(sizes: tuple[tuple[Path, int], ...]) -> Callable[[int], Any]:
    """The handler for files. The cache keeps it alive: the system has its address alone."""

    def end(number: int) -> None:
        shorter = [path for path, size in sizes if _size(path) < size] or [path for path, _ in sizes]
        named = printable(", ".join(map(str, shorter)))
        os.write(2, f"\nerror: {named}: the file was truncated while it was read\n".encode(errors="replace"))
        os._exit(1)

    return ctypes.CFUNCTYPE(None, ctypes.c_int)(end)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
