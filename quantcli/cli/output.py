"""What commands print: one JSON document, or views that people read, and progress; how numbers and foreign texts are shown.

Views are rich renderables. On a terminal they have its width and colours; in a pipe they are plain, and as wide as what
they hold, so that no name is cut.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_PIPE_WIDTH: Final = 4096
_BINARY_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_DECIMAL_UNITS: Final = ("K", "M", "B", "T")


def print_json(document: Any) -> None:
    """Print one JSON document on stdout, ASCII only, on one line.

    Raises:
        ValueError: for a number JSON does not have: not a number, or infinite.
    """
    click.echo(json.dumps(document, allow_nan=False))


def show(*views: RenderableType) -> None:
    """Print views on stdout."""
    from rich.console import Console

    # Texts come from files: nothing in them is markup.
    plain: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False}
    if sys.stdout.isatty():
        console = Console(**plain)
        for view in views:
            console.print(view)
        return
    buffer = StringIO()
    console = Console(file=buffer, width=_PIPE_WIDTH, color_system=None, **plain)
    for view in views:
        console.print(view)
    text = "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).lstrip("\n")
    encoding = sys.stdout.encoding or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


@contextmanager
def byte_progress(what: str, total: int = 0) -> Iterator[Any]:
    """One tqdm bar in bytes on stderr, only on a terminal."""
    from tqdm import tqdm

    with tqdm(
        total=total, unit="B", unit_scale=True, unit_divisor=1000, desc=what, leave=False, delay=0.2,
        file=sys.stderr, disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        yield bar


def columns(*names: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """An empty table with these headings, those in `right` aligned to the right. What is too wide is folded, never cut."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left", header_style="bold")
    for name in names:
        numeric = name in right
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    return table


def heading(text: str) -> RenderableType:
    """The title of a section, with an empty line above."""
    from rich.text import Text

    return Text(f"\n{text}", style="bold cyan")


def printable(text: str) -> str:
    """A text from a file so that a terminal can show it: control characters, and bytes that are not UTF-8, escaped."""
    if text.isprintable():
        return text
    whole = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in whole)


def binary_size(count: int) -> str:
    """Bytes in the unit that fits: `4.58 GiB`."""
    return _scaled(count, 1024, ("bytes", *_BINARY_UNITS))


def decimal_count(count: int) -> str:
    """A number of weights in the unit that fits: `8.03 B`."""
    return _scaled(count, 1000, ("", *_DECIMAL_UNITS))


def _scaled(count: int, step: int, units: tuple[str, ...]) -> str:
    value, index = float(count), 0
    # 999.995 would be shown as 1000.00.
    while value >= step - 0.005 and index < len(units) - 1:
        value, index = value / step, index + 1
    return (f"{value:.2f} {units[index]}" if index else f"{count} {units[0]}").rstrip()
