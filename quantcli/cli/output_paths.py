"""The option `-o`: a file, or a directory, which is made where the path ends in a slash."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from quantcli.core.errors import OutputError, UsageError


class OutputPath(click.Path):
    """The type of `-o`. With `folder`, the value is a string, for `is_folder` and `made_folder`; otherwise a `Path`.

    Raises:
        UsageError: for `-`, and without `folder` for a path that ends in a slash.
    """

    def __init__(self, *, folder: bool = False) -> None:
        super().__init__(path_type=str if folder else Path)
        self.folder = folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The string or the path."""
        text = os.fspath(value)
        if text == "-":
            raise UsageError("-o -: the output cannot be written to stdout", hint="give a file: -o NAME.gguf")
        if not self.folder and is_folder(text):
            raise UsageError(f"-o {text}: expected a file, found a directory", hint=f"give a file: -o {text}NAME.gguf")
        return super().convert(value, param, ctx)


def is_folder(output: str) -> bool:
    """Whether a path is a directory by its last character."""
    return output.endswith(tuple(mark for mark in (os.sep, os.altsep) if mark))


@contextmanager
def made_folder(output: str | None) -> Iterator[Path | None]:
    """Make the directory that `output` is by its last character, with its parents. Gives its path, as of other outputs.

    Directories that were made and are empty on leaving, after an error, are removed.

    Raises:
        OutputError: if a file is in the way.
    """
    path = None if output is None else Path(output)
    if path is None or output is None or not is_folder(output):
        yield path
        return
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise OutputError(f"{output}: expected a directory or none, found a file") from None
    try:
        yield path
    finally:
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
