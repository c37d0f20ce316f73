"""Output of commands: a JSON document or human-readable views, and progress.

On a terminal, views are coloured and fit its width. In a pipe, they are plain and as wide as their content.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TextIO

import click

from quantcli.cli.text_tables import Table, Text, View
from quantcli.core.display import printable

LOOKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "heading": {"bold": True, "fg": "cyan"},
    "title": {"bold": True, "fg": "green"},
    "label": {"bold": True},
    "aside": {"dim": True},
}
"""Terminal styles by name, as arguments of `click.style`."""

_KEPT: Final = 1000
"""Of a long message, the most characters that are shown of its beginning, which names a file, and of its end."""

_DELAY: Final = 0.2
"""A progress bar is first drawn after so many seconds."""


def print_json(document: Any) -> None:
    """Print one JSON document on stdout, ASCII only, on one line.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
    """
    import json

    click.echo(json.dumps(document, allow_nan=False))


def show(*views: View) -> None:
    """Print views on stdout."""
    coloured = has_colours(sys.stdout)
    paint = _painted if coloured else _plain
    text = "\n".join(line for view in views for line in view.lines(_terminal_width(), paint)).lstrip("\n")
    encoding = sys.stdout.encoding or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), color=coloured)


def say(text: str, *, err: bool = False) -> None:
    """Print one line that may hold strings from files, made safe for a terminal, on stdout or stderr."""
    if len(text) > 2 * _KEPT:
        text = f"{text[:_KEPT]} ... {text[-_KEPT:]}"
    with _above_progress():
        click.echo(printable(text), err=err)


def say_aside(text: str) -> None:
    """Write one dimmed line of secondary information to stderr."""
    coloured = has_colours(sys.stderr)
    click.echo(_painted(text, "aside") if coloured else text, err=True, color=coloured)


def has_colours(stream: TextIO) -> bool:
    """Whether output to a stream is coloured: by default, on a terminal with colours.

    NO_COLOR (see no-color.org) and CLICOLOR=0 turn colours off, and CLICOLOR_FORCE turns them on everywhere. An empty
    variable counts as unset.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb" and os.environ.get("CLICOLOR") != "0"


@contextmanager
def byte_progress(what: str, total: int = 0) -> Iterator[Any]:
    """A tqdm progress bar in bytes on stderr, only on a terminal."""
    with _progress(desc=what, total=total, unit="B", unit_scale=True, unit_divisor=1000) as bar:
        yield bar


@contextmanager
def chunk_progress(what: str, total: int | None = None, unit: str = "chunk") -> Iterator[Any]:
    """A tqdm progress bar in chunks, or other units, on stderr, only on a terminal.

    Its speed does not count the compilation of kernels.
    """
    with _progress(desc=what, total=total, unit=unit) as bar:
        count_running_time(bar)
        yield bar


def count_running_time(bar: Any) -> None:
    """Let the speed that a tqdm progress bar shows from now on not count the compilation of kernels."""
    from quantcli.kernels.compilation import running_seconds

    if not bar.disable:
        bar._time = running_seconds
        bar.start_t = bar.last_print_t = running_seconds()


@contextmanager
def _progress(**options: Any) -> Iterator[Any]:
    from tqdm import tqdm

    hidden = not sys.stderr.isatty()
    with tqdm(leave=False, delay=_DELAY, file=sys.stderr, disable=hidden, **options) as bar:
        try:
            yield bar
        finally:
            # On closing, tqdm takes a bar for undrawn until the delay is over. But `reset` draws it at once.
            bar.delay = 0


@contextmanager
def _above_progress() -> Iterator[None]:
    """What is written within it goes above the progress bar, if one is drawn."""
    if "tqdm" not in sys.modules:
        yield
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        yield


def columns(*names: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table with these headings, those in `right` aligned to the right."""
    return Table(names, frozenset(right))


def heading(text: str) -> Text:
    """The title of a section, with an empty line above."""
    return Text(f"\n{text}", "heading")


def _terminal_width() -> int | None:
    """The terminal's width in columns, or None where stdout is a pipe or a file."""
    if not sys.stdout.isatty():
        return None
    from shutil import get_terminal_size

    return get_terminal_size().columns


def _painted(text: str, look: str) -> str:
    return click.style(text, **LOOKS[look]) if text else ""


def _plain(text: str, look: str) -> str:
    return text
