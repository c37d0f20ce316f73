"""Layout of text and tables, for the width of a terminal, or for a pipe as wide as their content.

Whatever they show may come from a file: control characters are escaped, and long strings clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final, Protocol

from quantcli.core.display import printable
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

    Without headings, the first column holds labels. On a terminal too narrow for it, the widest columns are wrapped.
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
        if titled:
            rows.insert(0, self.names)
        widths = self._widths(rows, width)
        for number, row in enumerate(rows):
            cells = [
                _wrapped(cell, room) if _width(cell) > room else [cell] for cell, room in zip(row, widths, strict=True)
            ]
            for line in zip_longest(*cells, fillvalue=""):
                text = self._line(line, widths)
                if titled:
                    yield text if number else paint(text, "label")
                else:
                    yield paint(text[: widths[0]], "label") + text[widths[0] :]

    def _widths(self, rows: list[tuple[str, ...]], width: int | None) -> list[int]:
        """The widths of the columns, where possible so narrow that a line fits `width`.

        The widest columns are narrowed, down to their longest word. If that does not suffice, the words of the widest
        column of text are broken.
        """
        columns = list(zip(*rows, strict=True)) or [() for _ in self.names]
        natural = [max(map(_width, column), default=0) for column in columns]
        excess = 0 if width is None else sum(natural) + len(_GAP) * (len(natural) - 1) - width
        if excess <= 0:
            return natural
        least = 0 if any(self.names) else _NARROWEST
        shortest = [
            min(whole, max(least, *(_width(word) for cell in column for word in cell.split() or [""])))
            for whole, column in zip(natural, columns, strict=True)
        ]
        widths, left = list(natural), excess
        while left and (wide := [index for index, room in enumerate(widths) if room > shortest[index]]):
            widths[max(wide, key=widths.__getitem__)] -= 1
            left -= 1
        texts = [index for index, name in enumerate(self.names) if name not in self.right]
        widest = max(texts, key=widths.__getitem__, default=None)
        if not left:
            return widths
        if widest is None or widths[widest] - left < _NARROWEST:
            return natural
        widths[widest] -= left
        return widths

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
