"""Ends the process with a message when a memory-mapped file is truncated while it is read."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from quantcli.cli.text_tables import printable


def report_truncation(path: Path) -> None:
    """Let SIGBUS, which the system sends for a page that the file no longer has, end the process with one line.

    Python cannot turn the signal into an exception: its own handlers run between bytecode instructions, and the instruction
    that failed would be tried again first. Windows has no such signal.
    """
    if hasattr(signal, "SIGBUS"):
        ctypes.CDLL(None).signal(signal.SIGBUS, _handler(path))


@cache
def _handler(path: Path) -> Callable[[int], Any]:
    """The handler for a file. The cache keeps it alive: the system has its address alone."""
    message = f"\nerror: {printable(str(path))}: the file was truncated while it was read\n".encode(errors="replace")

    def end(number: int) -> None:
        os.write(2, message)
        os._exit(1)

    return ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
