"""Layout of text and tables, for the width of a terminal, or for a pipe as wide as their content.

Whatever they show may come from a file: control characters are escaped, and long strings clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final, Protocol

from quantcli.core.errors import clipped

_GAP: Final = "  "
_NARROWEST: Final = 16
"""A column is never wrapped to less than this width. The terminal then wraps the whole line."""

_LONGEST: Final = 1000
"""The most characters of a cell or a line."""

Paint = Callable[[str, str], str]
"""Applies a style to a text: see `LOOKS` in `quantcli.cli.output`."""


class View(Protocol):
    """Something to show."""

    def lines(self, width: int | None, paint: Paint) -> Iterator[str]:
        """The lines, wrapped to `width` columns where it is given and that is possible."""


def printable(text: str) -> str:
    """A text made safe for a terminal: control characters and bytes that are not UTF-8 are escaped."""
    if text.isprintable():
        return text
    whole = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in whole)


def _shown(text: str) -> str:
    return printable(clipped(text, _LONGEST))


@dataclass(frozen=True)
class Text:
    """Lines of text."""

    text: str
    look: str

    def lines(self, width: int | None, paint: Paint) -> Iterator[str]:
        """The lines. A terminal wraps those longer than its width."""
        return (paint(_shown(line), self.look) for line in self.text.split("\n"))


@dataclass(frozen=True)
class Table:
    """Rows under headings, the columns in `right` aligned to the right.

    Without headings, the first column holds labels. On a terminal too narrow for it, the widest text column is wrapped.
    A cell has one line.
    """

    names: tuple[str, ...]
    right: frozenset[str] = frozenset()
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add_row(self, *cells: str) -> None:
        """Add a row: a cell for each column."""
        if len(cells) != len(self.names):
            raise ValueError(f"{len(cells)} cells for {len(self.names)} columns")
        self.rows.append(cells)

    def lines(self, width: int | None, paint: Paint) -> Iterator[str]:
        """The headings and the rows."""
        titled = any(self.names)
        rows = [tuple(map(_shown, row)) for row in self.rows]
        widths = [max(map(_width, column)) for column in zip(self.names, *rows, strict=True)]
        folded = self._fold(widths, width)
        if titled:
            yield paint(self._line(self.names, widths), "label")
        for row in rows:
            cells = [[cell] for cell in row]
            if folded is not None and _width(row[folded]) > widths[folded]:
                cells[folded] = _wrapped(row[folded], widths[folded])
            for line in zip_longest(*cells, fillvalue=""):
                text = self._line(line, widths)
                yield text if titled else paint(text[: widths[0]], "label") + text[widths[0] :]

    def _fold(self, widths: list[int], width: int | None) -> int | None:
        """Narrow the widest text column to fit `width`. Returns its index, or None where none is narrowed."""
        excess = 0 if width is None else sum(widths) + len(_GAP) * (len(widths) - 1) - width
        texts = [index for index, name in enumerate(self.names) if name not in self.right]
        widest = max(texts, key=widths.__getitem__, default=None)
        if excess <= 0 or widest is None or widths[widest] - excess < _NARROWEST:
            return None
        widths[widest] -= excess
        return widest

    def _line(self, cells: tuple[str, ...], widths: list[int]) -> str:
        padded = []
        for name, cell, width in zip(self.names, cells, widths, strict=True):
            space = " " * (width - _width(cell))
            padded.append(space + cell if name in self.right else cell + space)
        return _GAP.join(padded).rstrip()


def _width(text: str) -> int:
    """The width of a text in terminal columns."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width

    return sum((1 + (east_asian_width(mark) in "WF")) * (category(mark) not in ("Mn", "Me", "Cf")) for mark in text)


def _wrapped(text: str, width: int) -> list[str]:
    from textwrap import wrap

    return wrap(text, width, break_on_hyphens=False)
