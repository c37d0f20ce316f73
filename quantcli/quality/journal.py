"""Finished steps of an evaluation on disk, so that an interrupted one continues where it was.

The first line of the journal is that of `formats.journal`. Each other line is what one step gave: its number, and NumPy
arrays as base64, bit by bit. Steps have a fixed order. So the lines of a journal are the first steps of the evaluation, and
a line that a kill has cut short is the last one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, TypeVar

import numpy as np

from quantcli.core.errors import FormatError, OutputError
from quantcli.formats.journal import Subject, difference, first_line, journal_line
from quantcli.formats.leftovers import lock

Kept = TypeVar("Kept")
"""A dataclass whose fields are NumPy arrays, or None."""

_KIND: Final = "evaluation"
_HINT: Final = "give the files and options of that evaluation, or another file to --resume"


class Steps(Protocol):
    """How the steps of an evaluation are taken: each is computed, or is known already."""

    def __call__(self, kind: type[Kept], compute: Callable[[], list[Kept]], /) -> list[Kept]:
        """What the next step gives, which `compute` returns: instances of `kind`."""


def computed(kind: type[Kept], compute: Callable[[], list[Kept]], /) -> list[Kept]:
    """A step that is computed and not kept: the `Steps` without a journal."""
    return compute()


@contextmanager
def open_journal(path: Path, subject: Subject) -> Iterator[Steps]:
    """Take the steps that the journal at `path` has from it, and append the others. Without an exception it is removed.

    Args:
        path: the journal, which is created if there is none.
        subject: what is evaluated.

    Raises:
        FormatError: if the file is no journal, is damaged, or is of another evaluation, which names the differences.
        OutputError: if it cannot be written, or another process is writing it.
    """
    with _opened(path) as file:
        if lock(file.fileno()) is False:
            raise OutputError(f"{path}: another evaluation is writing this file")
        _begin(path, file, subject)
        yield _Journal(path, file).step
    with _named(path):
        path.unlink()


def _opened(path: Path) -> BinaryIO:
    with _named(path):
        try:
            return path.open("r+b")
        except FileNotFoundError:
            return path.open("x+b")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn an error of the system into one that names the journal."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error


def _begin(path: Path, file: BinaryIO, subject: Subject) -> None:
    """Read the first line, or write it to a file that was killed before it had one."""
    expected = first_line(_KIND, subject)
    found = file.readline(len(expected) + (1 << 20))
    if not found.endswith(b"\n") and expected.startswith(found):
        with _named(path):
            file.seek(0)
            file.write(expected)
            file.flush()
    elif found != expected:
        raise FormatError(path, difference(_KIND, found, subject), hint=_HINT)


@dataclass
class _Journal:
    """An open journal, of which `number` steps are done. `replays` until all that it has were taken."""

    path: Path
    file: BinaryIO
    number: int = 0
    replays: bool = True

    def step(self, kind: type[Kept], compute: Callable[[], list[Kept]], /) -> list[Kept]:
        """The `Steps` of this journal."""
        self.number += 1
        if self.replays:
            start = self.file.tell()
            line = self.file.readline()
            if line.endswith(b"\n"):
                return self._read(kind, line)
            self.file.seek(start)
            self.file.truncate()
            self.replays = False
        found = compute()
        with _named(self.path):
            self.file.write(journal_line([self.number, [_encoded(each) for each in found]]))
            self.file.flush()
        return found

    def _read(self, kind: type[Kept], line: bytes) -> list[Kept]:
        try:
            number, found = json.loads(line)
            results = [kind(**{name: _decoded(*array) for name, array in each.items()}) for each in found]
        except (ValueError, TypeError, AttributeError) as error:
            raise FormatError(self.path, f"line {self.number + 1} is damaged", hint="remove the file") from error
        if number != self.number:
            what = f"line {self.number + 1} is step {number}, expected {self.number}"
            raise FormatError(self.path, what, hint="remove the file")
        return results


def _encoded(kept: Any) -> dict[str, list[Any]]:
    """The arrays of a dataclass by field: dtype, shape, content. Fields that are None are left out."""
    arrays = {field.name: getattr(kept, field.name) for field in fields(kept)}
    return {
        name: [array.dtype.str, array.shape, base64.b64encode(array.tobytes()).decode()]
        for name, array in arrays.items()
        if array is not None
    }


def _decoded(dtype: str, shape: list[int], content: str) -> Any:
    return np.frombuffer(base64.b64decode(content, validate=True), dtype).reshape(shape)
