"""The plot of size against divergence in the README, from what quality_table.py measured.

    python tests/bench/quality_plot.py docs/quality.json -o docs/quality.svg

One line for each way of rounding. It needs no fonts or scripts, and follows the reader's light or dark theme.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from quantcli.quality.report.elements import Element, element
from quantcli.quality.report.scales import Scale, linear, logarithmic, tick

WIDTH, HEIGHT = 760, 430
LEFT, TOP, RIGHT, BOTTOM = 64, 34, 24, 56
WAYS = {
    "plain": "llama.cpp",
    "reference": "llama.cpp, importance matrix",
    "best": "--quality best, same types",
    "types free": "--quality best, types chosen",
}
"""The lines, from the worst on, as the legend names them."""

STYLE = """
svg { font: 12px system-ui, sans-serif; --ink: #1b1f24; --soft: #5b6470; --faint: #e3e6ea; background: #ffffff; }
.way0 { --line: #9aa3ad; } .way1 { --line: #b35900; } .way2 { --line: #6cb0f5; } .way3 { --line: #0b5cab; }
text { fill: var(--ink); } .soft { fill: var(--soft); } .grid { stroke: var(--faint); }
.line { stroke: var(--line); stroke-width: 2; } .dot { fill: var(--line); }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e8eaed; --soft: #9aa4b0; --faint: #2c323a; background: #14171b; }
  .way1 { --line: #f0a35e; } .way2 { --line: #4a88c6; } .way3 { --line: #98c2ea; }
}
"""

Point = tuple[float, float, str]


def positions(points: Sequence[Any], across: Scale, down: Scale) -> list[Point]:
    """The places of points in pixels, by size, and their types."""
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return sorted(
        (LEFT + width * across.place(point["bytes"]), TOP + height * (1 - down.place(point["divergence"])), point["type"])
        for point in points
    )


def axes(across: Scale, down: Scale) -> list[Element]:
    parts = [element("text", "Mean KL divergence, nats", class_="soft", x=8, y=18)]
    for value in down.ticks:
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - down.place(value))
        parts.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(element("text", tick(value), class_="soft", x=LEFT - 8, y=y + 4, text_anchor="end"))
    for value in across.ticks:
        x = LEFT + (WIDTH - LEFT - RIGHT) * across.place(value)
        text = f"{value / 2**20:g} MiB"
        parts.append(element("text", text, class_="soft", x=x, y=HEIGHT - BOTTOM + 22, text_anchor="middle"))
    parts.append(element("text", "File size", class_="soft", x=WIDTH - RIGHT, y=HEIGHT - 10, text_anchor="end"))
    return parts


def line(number: int, name: str, points: Sequence[Point], *, labelled: bool) -> Element:
    """A way of rounding: its line, its dots, its types, and its entry of the legend."""
    joined = [element("line", class_="line", x1=a[0], y1=a[1], x2=b[0], y2=b[1]) for a, b in pairwise(points)]
    dots = [element("circle", class_="dot", cx=x, cy=y, r=4) for x, y, _ in points]
    labels = [element("text", kind, x=x + 7, y=y - 7) for x, y, kind in points] if labelled else []
    x, y = WIDTH - RIGHT - 230, TOP + 10 + 20 * number
    entry = [
        element("line", class_="line", x1=x, x2=x + 24, y1=y - 4, y2=y - 4),
        element("text", name, x=x + 32, y=y),
    ]
    return element("g", *joined, *dots, *labels, *entry, class_=f"way{number}")


def drawn(document: Any) -> str:
    """The SVG of what was measured."""
    points = document["points"]
    across = linear([point["bytes"] for point in points], unit=1 << 20)
    down = logarithmic([point["divergence"] for point in points])
    of_way = {way: [point for point in points if point["way"] == way] for way in WAYS}
    lines = [
        line(number, name, positions(of_way[way], across, down), labelled=way == "reference")
        for number, (way, name) in enumerate(WAYS.items())
        if of_way[way]
    ]
    title = element("title", f"Size against divergence: {document['measured']}")
    picture = element(
        "svg", title, element("style", " ".join(STYLE.split())), *axes(across, down), *lines, xmlns="http://www.w3.org/2000/svg",
        width=WIDTH, height=HEIGHT, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img",
    )  # fmt: skip
    return picture.__html__() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    document = json.loads(options.measured.read_text(encoding="utf-8"))
    options.output.write_text(drawn(document), encoding="utf-8")


if __name__ == "__main__":
    main()
