"""Which parts of a temporary file are written, on disk, so that an interrupted run continues instead of beginning anew.

The journal `.TARGET.1a2b3c4d.journal` is beside the temporary file `.TARGET.1a2b3c4d.part`. Its first line is that of
`formats.journal`, each other line one of

    [position, count, checksum]        so many bytes were written there, with this CRC-32
    [device, inode, size, time]        the file is complete and is being renamed to its target

A line follows its bytes, so that the end of the process at any moment loses the bytes of one write. After a power cut the
disk may have the line and not the bytes. So bytes are compared with their checksum before a run relies on them. A line that
is cut short or damaged counts as missing.
"""

from __future__ import annotations

import json
import os
import zlib
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final

from quantcli.core.errors import OutputError
from quantcli.formats.journal import Subject, difference, first_line, journal_line
from quantcli.formats.leftovers import journal_of, journals_for, lock

_KIND: Final = "conversion"
_FILE: Final = "the name of the file"
_HINT: Final = "without --resume it is begun anew"
_APPENDING: Final = os.O_RDWR | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_LONGEST_READ: Final = 1 << 24


class WrittenRanges:
    """The open journal of a temporary file. It is locked, as the temporary file is.

    published   whether the file is complete and at its target already
    """

    def __init__(self, path: Path, descriptor: int, lines: list[Any]) -> None:
        self.path = path
        self.published = False
        self._descriptor = descriptor
        self._lock = Lock()
        self._checksums = {(line[0], line[1]): line[2] for line in lines if len(line) == 3}
        self._renamed = next((line for line in reversed(lines) if len(line) == 4), None)

    def wrote(self, view: memoryview, position: int) -> None:
        """Note bytes that were written. Safe to call from several threads at once."""
        self._append([position, len(view), zlib.crc32(view)])

    def publishing(self, status: os.stat_result) -> None:
        """Note that the file is complete, before it is renamed."""
        self._append(_identity(status))

    def has(self, descriptor: int, position: int, count: int) -> bool:
        """Whether these bytes of the temporary file `descriptor` were written by one write, and are there."""
        if self.published:
            return True
        expected = self._checksums.get((position, count)) if hasattr(os, "pread") else None  # Windows has none
        return expected is not None and expected == _checksum(descriptor, position, count)

    def is_at(self, target: Path) -> bool:
        """Whether the file at `target` is the complete one."""
        with suppress(OSError):
            return self._renamed == _identity(target.stat())
        return False

    def remove(self) -> None:
        """Remove the journal: nothing will be continued."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the journal, which ends its lock."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _append(self, line: list[int]) -> None:
        with self._lock:
            os.write(self._descriptor, journal_line(line))


def begin_journal(temporary: Path, target: Path, subject: Subject) -> WrittenRanges:
    """Create the journal of a new temporary file.

    Raises:
        OSError: if it cannot be created.
    """
    path = journal_of(temporary)
    descriptor = os.open(path, _APPENDING | os.O_CREAT | os.O_EXCL, 0o666)
    lock(descriptor)
    os.write(descriptor, first_line(_KIND, _named(target, subject)))
    return WrittenRanges(path, descriptor, [])


def find_journal(target: Path, subject: Subject, file_bytes: int) -> tuple[WrittenRanges, Path, int] | None:
    """What an interrupted run with the same target and subject left: its journal, its temporary file, and that file's
    locked descriptor. Where the file is at its target already, the journal is `published` and the descriptor -1.

    Raises:
        OutputError: if what was left is of another subject.
        OSError: if the system refuses.
    """
    subject = _named(target, subject)
    for path in journals_for(target):
        descriptor = os.open(path, _APPENDING)
        with open(descriptor, "rb", closefd=False) as file:
            first, *rest = file.read().split(b"\n")
        if lock(descriptor) is False or not _is_of(first, target):
            os.close(descriptor)
            continue
        if first + b"\n" != first_line(_KIND, subject):
            os.close(descriptor)
            raise OutputError(f"{path}: {difference(_KIND, first, subject)}", hint=_HINT)
        if rest[-1]:
            os.write(descriptor, b"\n")  # ends a line that was cut short
        found = WrittenRanges(path, descriptor, [line for line in map(_parsed, rest) if line])
        temporary = path.with_suffix(".part")
        opened = _open_locked(temporary, file_bytes)
        found.published = opened < 0 and found.is_at(target)
        if opened >= 0 or found.published:
            return found, temporary, opened
        found.remove()
    return None


def _named(target: Path, subject: Subject) -> Subject:
    return [(_FILE, target.name), *subject]


def _is_of(first: bytes, target: Path) -> bool:
    """Whether a first line is of this target: the names of temporary files have the beginning of the target's name only."""
    try:
        return dict(json.loads(first)["of"]).get(_FILE) == target.name
    except (ValueError, KeyError, TypeError):
        return False


def _parsed(line: bytes) -> list[int] | None:
    """The numbers of a line, or None where it is not whole."""
    try:
        numbers = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(numbers, list) and len(numbers) in (3, 4) and all(type(number) is int for number in numbers)
    return numbers if whole else None


def _open_locked(temporary: Path, file_bytes: int) -> int:
    """The descriptor of a temporary file, -1 if it is missing, of another size, or a running process has it."""
    try:
        descriptor = os.open(temporary, os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return -1
    if os.fstat(descriptor).st_size == file_bytes and lock(descriptor) is not False:
        return descriptor
    os.close(descriptor)
    return -1


def _checksum(descriptor: int, position: int, count: int) -> int:
    value = 0
    while count:
        data = os.pread(descriptor, min(count, _LONGEST_READ), position)
        if not data:
            break
        value, position, count = zlib.crc32(data, value), position + len(data), count - len(data)
    return value


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
