"""Write a directory so that it appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from quantcli.core.errors import OutputError
from quantcli.formats.leftovers import clear_leftovers, create_temporary_directory, label_of

_EXISTS: Final = "give a directory that does not exist"


class OutputDirectory(AbstractContextManager[Any]):
    """A directory that is filled beside its place and then renamed; a context manager.

    Files are written to `temporary`. After an exception, Ctrl-C included, it is removed. Directories that killed runs with
    the same target left are removed on entry.

    Raises:
        OutputError: on entry and on leaving, if there is something else than an empty directory at `path`, or its parent
            does not exist or cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path
        self._descriptor = -1

    def check(self) -> None:
        """Refuse a place that is taken."""
        if self.path.is_dir() and not any(self.path.iterdir()):
            return
        if self.path.exists() or self.path.is_symlink():
            kind = "a directory that is not empty" if self.path.is_dir() else "a file"
            raise OutputError(f"{self.path}: expected no directory or an empty one, found {kind}", hint=_EXISTS)
        if not self.path.parent.is_dir():
            raise OutputError(f"{self.path}: the directory {self.path.parent} does not exist", hint="create it first")

    def __enter__(self) -> Self:
        self.check()
        clear_leftovers(self.path.parent, label_of(self.path.name).__eq__)
        try:
            self.temporary, self._descriptor = create_temporary_directory(self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror or error}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.check()
                self.temporary.replace(self.path)
        except OSError as failure:
            raise OutputError(f"{self.path}: {failure.strerror or failure}") from failure
        finally:
            if self.temporary.exists():
                with suppress(OSError):
                    shutil.rmtree(self.temporary)
            if self._descriptor >= 0:
                os.close(self._descriptor)
