"""The plot of size against divergence, or perplexity, with plain characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quantcli.cli.text_tables import Paint
from quantcli.core.display import printable
from quantcli.core.errors import clipped

if TYPE_CHECKING:
    from quantcli.quality.evaluate import TextEvaluation
    from quantcli.quality.report.prices import Price
    from quantcli.quality.report.scales import Scale

WIDTH: Final = 80
HEIGHT: Final = 16
_MARGIN: Final = 9
"""Columns of the numbers at the vertical axis, with the axis."""

_LONGEST_LABEL: Final = 24


def plotted(files: Sequence[Path], results: Sequence[TextEvaluation]) -> TerminalPlot:
    """The plot of files that were evaluated on texts. Their sizes are read."""
    from quantcli.formats.gguf.reader import open_gguf
    from quantcli.quality.report.files import labels
    from quantcli.quality.report.prices import prices

    sizes = []
    for path in files:
        with open_gguf(path) as file:
            sizes.append(file.file_bytes)
    return TerminalPlot(prices(labels(files), sizes, results))


@dataclass(frozen=True)
class TerminalPlot:
    """A view: `o` for a file that none dominates, `x` for the others, `|` for 95 % intervals of more than a row."""

    prices: Sequence[Price]

    def lines(self, width: int | None, paint: Paint) -> Iterator[str]:
        """The lines, of at most 80 columns, and fewer in a narrower terminal."""
        from quantcli.quality.report.scatter import cost_scale, size_scale

        columns = max(24, min(width or WIDTH, WIDTH) - _MARGIN)
        compared = self.prices[0].same_top is not None
        across, down = size_scale(self.prices), cost_scale(self.prices, divergence=compared)
        what = "mean KL divergence in nats, logarithmic" if compared else "perplexity"
        yield ""
        yield paint(f"Size against {what}", "heading")
        marks = _marks(down)
        for row, text in enumerate(_drawn(self.prices, across, down, columns)):
            yield f"{marks.get(row, ''):>{_MARGIN - 2}} {'+' if row in marks else '|'}{text}".rstrip()
        yield from _size_axis(across, columns)
        for price in self.prices:
            if price.dominated:
                better = printable(price.dominated)
                yield f"x {printable(price.label)} is dominated: {better} is no larger, and no worse on these texts"


def _marks(down: Scale) -> dict[int, str]:
    """The numbers at the vertical axis, by row."""
    from quantcli.quality.report.scales import tick

    return {_row(down, value): tick(value) for value in down.ticks}


def _row(down: Scale, value: float) -> int:
    return round((HEIGHT - 1) * (1 - down.place(value)))


def _drawn(prices: Sequence[Price], across: Scale, down: Scale, columns: int) -> list[str]:
    """The rows of the plot, without axes."""
    cells = [[" "] * columns for _ in range(HEIGHT)]
    places = [(_row(down, price.cost.value), round((columns - 1) * across.place(price.size))) for price in prices]
    for price, (_, column) in zip(prices, places, strict=True):
        low, high = price.cost.interval
        for row in range(_row(down, high), _row(down, low) + 1):
            cells[row][column] = "|"
    for price, (row, column) in zip(prices, places, strict=True):
        cells[row][column] = "x" if price.dominated else "o"
    for price, (row, column) in zip(prices, places, strict=True):
        _write_label(cells, clipped(printable(price.label), _LONGEST_LABEL), row, column)
    return ["".join(row) for row in cells]


def _write_label(cells: list[list[str]], label: str, row: int, column: int) -> None:
    """Write a label beside its point, where it covers nothing. Without such a place it is left out."""
    length = len(label)
    for line in (row, row - 1, row + 1):
        for start in (column + 2, column - 1 - length):
            if not (0 <= line < len(cells) and start >= 0 and start + length <= len(cells[0])):
                continue
            around = cells[line][max(0, start - 1) : start + length + 1]
            if all(mark == " " for mark in around):
                cells[line][start : start + length] = label
                return


def _size_axis(across: Scale, columns: int) -> Iterator[str]:
    """The axis of sizes, and below it as many of its numbers as have room."""
    from quantcli.quality.report.scatter import size_tick

    rule, numbers = ["-"] * columns, [" "] * (columns + _MARGIN)
    free = 0
    for value in across.ticks:
        column = round((columns - 1) * across.place(value))
        rule[column] = "+"
        text = size_tick(value, across.high)
        start = max(0, _MARGIN + column - len(text) // 2)
        if start >= free and start + len(text) <= len(numbers):
            numbers[start : start + len(text)] = text
            free = start + len(text) + 2
    yield " " * (_MARGIN - 1) + "+" + "".join(rule)
    yield "".join(numbers).rstrip()
