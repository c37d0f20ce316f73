"""Files with positional reads, which all lazy tensors are based on."""

from __future__ import annotations

import errno
import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Final, Self

from quantcli.core.errors import FormatError
from quantcli.tensors import lfs

_LONGEST_READ: Final = 1 << 30
"""The most bytes of one call: macOS refuses more than 2 GiB, Linux reads fewer."""

_COPIED_READ: Final = 1 << 20
"""The most bytes of one call that returns a new object."""

_BINARY: Final[int] = getattr(os, "O_BINARY", 0)
"""The flag that disables newline translation on Windows."""


class DataFile(ABC):
    """A local or remote file with positional reads, which the readers of formats take.

    Reading is safe from several threads at once. Closing is not safe while another thread reads.
    """

    path: Path
    """The name of the file in errors; its path, if it is a local file."""
    size: int
    """The size of the file in bytes."""

    @abstractmethod
    def read_into(self, out: memoryview, position: int) -> None:
        """Fill `out`, a contiguous view of bytes, from byte `position` on.

        Raises:
            FormatError: if the file ends before, cannot be read, or is another file than before.
        """

    def read(self, position: int, count: int) -> bytes:
        """`count` bytes from `position` on. For headers, which are read once.

        Raises:
            FormatError: as `read_into`; also, before memory is allocated, if the file is too short.
        """
        if position + count > self.size:
            what = f"expected {count} bytes, found {max(0, self.size - position)}"
            raise FormatError(self.path, what, offset=position)
        out = bytearray(count)
        self._read_small(memoryview(out), position)
        return bytes(out)

    def expect(self, positions: Iterable[int]) -> None:  # noqa: B027 - for local files there is nothing to do
        """Announce the positions of headers that will be read next. A remote file prefetches them at once."""

    def expect_unchanged(self) -> None:  # noqa: B027 - a remote file is compared with each answer
        """Check that the file is the one that was opened, with the same content, as far as the system tells.

        Raises:
            FormatError: if it has changed.
        """

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells the file from another one or from later content under the same name, without reading it."""

    def stream(self) -> io.BufferedReader:
        """The file as a seekable binary stream, for the standard library."""
        return io.BufferedReader(_Stream(self))

    def close(self) -> None:  # noqa: B027 - for remote files there is nothing to do
        """Close the file. A later read opens it again."""

    def _read_small(self, out: memoryview, position: int) -> None:
        self.read_into(out, position)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


def data_file(source: str | os.PathLike[str] | DataFile) -> DataFile:
    """The argument of a reader as a `DataFile`: a path is opened.

    Raises:
        FormatError: as `InputFile`.
    """
    return source if isinstance(source, DataFile) else InputFile(source)


def expect_unchanged(files: Iterable[DataFile]) -> None:
    """Check that no file has changed since it was opened. Call it before an output that was made from them appears.

    Raises:
        FormatError: as `DataFile.expect_unchanged`.
    """
    for file in files:
        file.expect_unchanged()


class _Stream(io.RawIOBase):
    def __init__(self, file: DataFile) -> None:
        super().__init__()
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "a position before the start")
        self._position = start + offset
        return self._position

    def readinto(self, out: Any, /) -> int:
        view = memoryview(out).cast("B")
        data = self._file.read(self._position, max(0, min(len(view), self._file.size - self._position)))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


class InputFile(DataFile):
    """A regular file, opened at the first read.

    A checkpoint may have hundreds of shards and a process few descriptors. So nothing is open before the first read. After
    `close`, a later read opens the file again and checks that it has not changed.

    Reading is safe from several threads at once. Closing is not safe while another thread reads.

    Raises:
        FormatError: if there is no such file, or it is a directory, a device, or a Git LFS pointer to the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor: int | None = None
        self._lock = Lock()
        self.path = Path(path)
        try:
            status = self.path.stat()
            regular = stat.S_ISREG(status.st_mode)
            pointer = regular and lfs.is_pointer(self.path, status.st_size)
        except (OSError, ValueError) as error:
            raise FormatError(path, f"cannot be opened: {_reason(error)}") from None
        if pointer:
            raise FormatError(path, lfs.FAULT, hint=lfs.HINT)
        if not regular:
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
            raise FormatError(path, f"expected a file, found {kind}")
        self.size = status.st_size
        self._identity = _identity(status)
        self._inode = status.st_ino

    def read_into(self, out: memoryview, position: int) -> None:
        """Fill `out`, a contiguous view of bytes, from byte `position` on.

        Raises:
            FormatError: if the file ends before, cannot be read, or is another file than before.
        """
        descriptor = self.fileno()
        while out:
            try:
                count = self._read_some(descriptor, out[:_LONGEST_READ], position)
            except OSError as error:
                raise FormatError(self.path, f"cannot be read: {_reason(error)}", offset=position) from None
            if count == 0:
                raise FormatError(self.path, f"the file ends {len(out)} bytes early", offset=position)
            out, position = out[count:], position + count

    def expect_unchanged(self) -> None:
        """Check that the path has the same file as at first, of the same size and modification time.

        Raises:
            FormatError: if it has not.
        """
        try:
            status = self.path.stat()
        except OSError as error:
            raise FormatError(self.path, f"the file has changed while it was read: {_reason(error)}") from None
        # Inodes of a path: on Windows an open file has another one.
        if _identity(status) != self._identity or status.st_ino != self._inode:
            raise FormatError(self.path, "the file has changed while it was read", hint="run the command again")

    @property
    def identity(self) -> str:
        """Its size and modification time."""
        return " ".join(map(str, self._identity))

    def fileno(self) -> int:
        """The descriptor. The file is opened if it is not open. Do not close the descriptor.

        Raises:
            FormatError: if the file cannot be opened, or is another file than before.
        """
        descriptor = self._descriptor
        return self._open() if descriptor is None else descriptor

    def close(self) -> None:
        """Close the descriptor. A later read opens the file again."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """In another process the file is opened there, and must be the same one."""
        return {"path": self.path, "size": self.size, "_identity": self._identity, "_inode": self._inode}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_descriptor": None, "_lock": Lock()}

    def _open(self) -> int:
        with self._lock:
            if self._descriptor is None:
                try:
                    descriptor = os.open(self.path, os.O_RDONLY | _BINARY)
                except OSError as error:
                    hint = "Raise the limit of open files (`ulimit -n`)." if error.errno == errno.EMFILE else None
                    raise FormatError(self.path, f"cannot be opened: {_reason(error)}", hint=hint) from None
                if _identity(os.fstat(descriptor)) != self._identity:
                    os.close(descriptor)
                    raise FormatError(self.path, "the file has changed since it was first opened")
                self._descriptor = descriptor
            return self._descriptor

    def _read_some(self, descriptor: int, out: memoryview, position: int) -> int:
        if hasattr(os, "preadv"):  # POSIX's positional read, which needs no lock; Windows has none
            return os.preadv(descriptor, [out], position)
        with self._lock:
            os.lseek(descriptor, position, os.SEEK_SET)
            data = os.read(descriptor, min(len(out), _COPIED_READ))
        out[: len(data)] = data
        return len(data)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    # Without device and inode: on Windows those of an open file differ from those of its path.
    return (status.st_size, status.st_mtime_ns)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
