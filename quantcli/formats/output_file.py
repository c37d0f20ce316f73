"""Write a file so that it appears whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from os import PathLike
from pathlib import Path
from threading import Lock
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from quantcli.core.errors import OutputError
from quantcli.formats.journal import Subject
from quantcli.formats.leftovers import HAS_LOCKS, SetAside, clear_leftovers, create_temporary, label_of
from quantcli.formats.written_ranges import WrittenRanges, begin_journal, find_journal

_LONGEST_WRITE: Final = 1 << 30

_REASONS: Final[Mapping[int, tuple[str, str | None]]] = MappingProxyType(
    {
        errno.ENOSPC: ("no space left on the disk", "free some space, or choose another place"),
        errno.EDQUOT: ("the disk quota is exceeded", "free some space, or choose another place"),
        errno.EFBIG: ("the file would be larger than this file system allows", "choose another place"),
        errno.EACCES: ("no permission to write there", None),
        errno.EPERM: ("no permission to write there", None),
        errno.EROFS: ("the file system is read-only", "choose another place"),
        errno.ENOENT: ("the directory does not exist", "create the directory first"),
        errno.ENOTDIR: ("the directory does not exist", "create the directory first"),
        errno.EMFILE: ("too many files are open", "write fewer at once, or raise the limit (`ulimit -n`)"),
    }
)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CANNOT_RESERVE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV})


class OutputFile(AbstractContextManager[Any]):
    """Writes a file of a known size; a context manager.

    On entry a hidden temporary file beside the target gets its full size. `write_at` fills it. On leaving without an
    exception it is flushed to the disk and renamed to `path`. After an exception, Ctrl-C included, it is removed, and a
    file that was at `path` is unchanged. If `path` is a symbolic link, its target is written. Temporary files that killed
    runs with the same target left are removed on entry.

    With `resume`, what is written (`formats.journal.Subject`), the temporary file stays after an exception or a kill, and
    the next `OutputFile` with an equal one continues it. `holds` says what it has. `forget` ends that, when all files that
    were written together have appeared.

    Raises:
        OutputError: on entry and later, if the target exists (unless `overwrite`), its directory does not, or the disk is
            full. On entry, if what an interrupted run left is of another subject than `resume`.
    """

    def __init__(
        self, path: str | PathLike[str], file_bytes: int, *, overwrite: bool = False, resume: Subject | None = None
    ) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self.file_bytes = file_bytes
        self._target = Path(os.path.realpath(self.path))
        self._temporary: Path | None = None
        self._descriptor = -1
        self._completed: os.stat_result | None = None
        self._resume = resume
        self._ranges: WrittenRanges | None = None
        self._lock = Lock()

    @property
    def target(self) -> Path:
        """The file that is written: `path`, or what it links to."""
        return self._target

    def write_at(self, view: memoryview, position: int) -> None:
        """Put bytes at a position. Safe to call from several threads at once."""
        rest, place = view, position
        with self._reporting():
            while rest:
                count = self._write_some(rest[:_LONGEST_WRITE], place)
                rest, place = rest[count:], place + count
            if self._ranges:
                self._ranges.wrote(view, position)

    def holds(self, position: int, count: int) -> bool:
        """Whether an interrupted run has written these bytes by one call of `write_at`. Safe to call from several
        threads."""
        if self._ranges is None:
            return False
        with self._reporting():
            return self._ranges.has(self._descriptor, position, count)

    def check_target(self) -> None:
        """Check that the file may be written. A long job calls it before it begins; it is called again then.

        Raises:
            OutputError: if the target is not a regular file, or exists (unless `overwrite`), or its directory does not.
        """
        if not self._target.exists():
            if not self._target.parent.is_dir():
                reason, hint = _REASONS[errno.ENOENT]
                raise OutputError(f"{self.path}: {reason}", hint=hint)
            return
        if not self._target.is_file():
            kind = "a directory" if self._target.is_dir() else "not a regular file"
            raise OutputError(f"{self.path}: expected a regular file or none, found {kind}")
        if not self.overwrite:
            raise OutputError(f"{self.path}: the file exists", hint="--overwrite replaces it")

    def __enter__(self) -> Self:
        if self._resume is None:
            self.check_target()
        clear_leftovers(self._target.parent, label_of(self._target.name).__eq__, resumable=self._resume is None)
        try:
            if not self._continued():
                self.check_target()
                with self._reporting():
                    self._temporary, self._descriptor = create_temporary(self._target)
                    _reserve(self._descriptor, self.file_bytes)
                    if self._resume is not None:
                        self._ranges = begin_journal(self._temporary, self._target, self._resume)
        except BaseException:
            self.discard()
            raise
        return self

    def _continued(self) -> bool:
        """Continue what an interrupted run left, if there is something."""
        if self._resume is None or not self._target.parent.is_dir():
            return False
        with self._reporting():
            found = find_journal(self._target, self._resume, self.file_bytes)
        if found is None:
            return False
        self._ranges, self._temporary, self._descriptor = found
        if not self._ranges.published:
            self.check_target()
        return True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.complete()
                self.publish()
        finally:
            self.discard()

    # The steps of `__exit__`, for a writer of several files that appear together.

    def complete(self) -> None:
        """Flush the temporary file to the disk."""
        if self._published:
            return
        with self._reporting():
            os.fsync(self._descriptor)
            self._completed = os.fstat(self._descriptor)
            if not HAS_LOCKS:
                self._close()

    def publish(self) -> None:
        """Rename the complete file to its path."""
        assert self._temporary  # since `__enter__`
        if self._published:
            return
        with self._reporting():
            self.check_target()
            if self._ranges and self._completed:
                self._ranges.publishing(self._completed)
            self._temporary.replace(self._target)
            _sync_directory(self._target.parent)

    def set_aside(self, aside: SetAside) -> None:
        """Move the file that will be replaced, if there is one, to `aside`."""
        if self._published:
            return
        with self._reporting():
            self.check_target()
            aside.move(self._target)
            _sync_directory(self._target.parent)

    def withdraw(self) -> None:
        """Remove the file from its path again, if `publish` has renamed it."""
        with suppress(FileNotFoundError):
            if self._completed and os.path.samestat(self._completed, self._target.stat()):
                self._target.unlink()

    def discard(self) -> None:
        """Remove the temporary file, if there is one and no later run is to continue it."""
        if self._ranges:
            self._ranges.close()
            self._close()
            return
        if not HAS_LOCKS:
            self._close()
        # After the rename, or if the directory was deleted, there is nothing to remove. `exists` is asked first, since a
        # read-only file system refuses even to remove a missing file.
        with suppress(FileNotFoundError, NotADirectoryError):
            if self._temporary and self._temporary.exists():
                self._temporary.unlink()
        self._close()

    def forget(self) -> None:
        """Remove the journal: the file has appeared, and all that were written with it."""
        if self._ranges:
            with self._reporting():
                self._ranges.remove()

    @property
    def _published(self) -> bool:
        """Whether an interrupted run has completed and renamed the file."""
        return self._ranges is not None and self._ranges.published

    def _close(self) -> None:
        """Close the temporary file, which ends its lock."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _write_some(self, view: memoryview, position: int) -> int:
        if hasattr(os, "pwrite"):  # POSIX's positional write, which needs no lock; Windows has none
            return os.pwrite(self._descriptor, view, position)
        with self._lock:
            os.lseek(self._descriptor, position, os.SEEK_SET)
            return os.write(self._descriptor, view)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn errors of the operating system into an `OutputError` that names the target."""
        try:
            yield
        except OSError as error:
            reason, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), None))
            room = f" ({self.file_bytes} bytes needed)" if error.errno in _FULL else ""
            raise OutputError(f"{self.path}: {reason}{room}", hint=hint) from error


def refuse_overwriting(
    sources: Iterable[Path], targets: Iterable[Path], what: str = "the model it is made from"
) -> None:
    """Refuse to write to a file that is being read. `what` names the sources in the message.

    Raises:
        OutputError: if one of `targets` is one of `sources`.
    """
    existing = [path for path in targets if path.exists()]
    for source in sources:
        for target in existing:
            if target.samefile(source):
                raise OutputError(f"{target}: the output would replace {what}", hint="choose another -o")


def _reserve(descriptor: int, size: int) -> None:
    """Give a new, empty file its size, and allocate its blocks if the file system can: a full disk shows at once."""
    if hasattr(os, "fstatvfs"):
        statistics = os.fstatvfs(descriptor)
        # Free space is checked first: if a file system cannot allocate, the C library writes to every block instead, and
        # would fill a disk that is too small before it fails.
        if statistics.f_blocks and statistics.f_bavail * statistics.f_frsize < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
    os.truncate(descriptor, size)


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut, if the system can sync a directory."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
