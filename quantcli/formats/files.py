"""A file read at positions: what every lazy tensor stands on."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Final, Self

from quantcli.formats.errors import FormatError

_LONGEST_READ: Final = 1 << 30
"""Bytes asked for in one call: macOS refuses more than 2 GiB and Linux shortens it."""

_read_at: Final[Callable[[int, Sequence[memoryview], int], int] | None] = getattr(os, "preadv", None)
"""The positional read of POSIX, which needs no lock. Windows has none."""


class InputFile:
    """A regular file, opened for reading when it is first needed.

    A checkpoint may have hundreds of shards and a process few descriptors, so nothing is open before the first read, and
    `close` only gives the descriptor back: a later read opens the file again, and checks that it is still the same one.

    Reading is safe from several threads at once; closing is not safe while another thread reads.

    Raises:
        FormatError: if there is no such file, or it is a directory or a device.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file: FileIO | None = None
        self._lock = Lock()
        self.path = Path(path)
        try:
            status = self.path.stat()
        except (OSError, ValueError) as error:
            raise FormatError(path, f"cannot be opened: {_reason(error)}") from None
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
            raise FormatError(path, f"expected a file, found {kind}")
        self.size: Final = status.st_size
        """Bytes in the file."""
        self._identity = _identity(status)

    def read_into(self, out: memoryview, position: int) -> None:
        """Fill `out`, a contiguous view of bytes, from byte `position` on.

        Raises:
            FormatError: if the file ends before, cannot be read, or is another file than before.
        """
        file = self._file or self._open()
        while out:
            try:
                count = self._read_some(file, out[:_LONGEST_READ], position)
            except OSError as error:
                raise FormatError(self.path, f"cannot be read: {_reason(error)}", offset=position) from None
            if count == 0:
                raise FormatError(self.path, f"the file ends {len(out)} bytes early", offset=position)
            out, position = out[count:], position + count

    def read(self, position: int, count: int) -> bytes:
        """`count` bytes from `position` on.

        Raises:
            FormatError: as `read_into`; also, before any memory is taken, if the file is not that long.
        """
        if position + count > self.size:
            what = f"expected {count} bytes, found {max(0, self.size - position)}"
            raise FormatError(self.path, what, offset=position)
        out = bytearray(count)
        self.read_into(memoryview(out), position)
        return bytes(out)

    def fileno(self) -> int:
        """The descriptor, opened if it was not: for memory maps. It is the file's own; do not close it."""
        return (self._file or self._open()).fileno()

    def close(self) -> None:
        """Give the descriptor back. A later read opens the file again."""
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"InputFile({str(self.path)!r})"

    def _open(self) -> FileIO:
        with self._lock:
            if self._file is None:
                try:
                    file = FileIO(self.path)
                except OSError as error:
                    hint = "Raise the limit of open files (`ulimit -n`)." if error.errno == errno.EMFILE else None
                    raise FormatError(self.path, f"cannot be opened: {_reason(error)}", hint=hint) from None
                if _identity(os.fstat(file.fileno())) != self._identity:
                    file.close()
                    raise FormatError(self.path, "the file has changed since it was first looked at")
                self._file = file
            return self._file

    def _read_some(self, file: FileIO, out: memoryview, position: int) -> int:
        if _read_at is not None:
            return _read_at(file.fileno(), [out], position)
        with self._lock:
            file.seek(position)
            return file.readinto(out) or 0


def _identity(status: os.stat_result) -> tuple[int, ...]:
    # Not the device and inode: Windows gives other numbers for an open file than for its path.
    return (status.st_size, status.st_mtime_ns)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
