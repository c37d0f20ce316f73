"""Lines of the divergence, or the perplexity, over the position in the context, with 95 % confidence bands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from quantcli.core.display import printable
from quantcli.core.errors import clipped
from quantcli.quality.positions import Band, pooled_bands
from quantcli.quality.report.content import Report
from quantcli.quality.report.elements import Element, chart, element, mark, percent
from quantcli.quality.report.scales import Scale, linear, logarithmic, short, tick
from quantcli.quality.statistics import Estimate

HEIGHT: Final = 300
_GAP: Final = 15
"""Pixels between the baselines of labels."""

_LONGEST: Final = 18
"""Letters of a label at a line."""

COLOURS: Final = 7


def bands_by_file(report: Report) -> list[tuple[Band, ...]]:
    """The bands of each file over all texts; none if a text has none."""
    if not report.texts or not all(text.result.bands for text in report.texts):
        return []
    return [pooled_bands([text.result.bands[index] for text in report.texts]) for index in range(len(report.files))]


def value_of(band: Band) -> Estimate:
    """The mean divergence of a band, or without a base the perplexity."""
    if band.divergence is not None:
        return band.divergence
    perplexity = math.exp(band.loss.value)
    return Estimate(perplexity, perplexity * band.loss.stderr)


def position_lines(labels: Sequence[str], bands: Sequence[tuple[Band, ...]]) -> Element:
    """The lines of all files."""
    first = bands[0]
    compared = first[0].divergence is not None
    values = [value_of(band) for line in bands for band in line]
    highest = [value.interval[1] for value in values]
    if compared:
        down = logarithmic([*highest, *(value.value for value in values)])
    else:
        down = linear([*highest, *(value.interval[0] for value in values)])
    start, stop = first[0].start, first[-1].stop
    across = Scale(start, stop, ())
    what = "KL divergence" if compared else "Perplexity"
    shapes = [shape for index, line in enumerate(bands) for shape in _line(index, line, across, down)]
    stretched = element(
        "svg", *shapes, viewBox=f"0 0 100 {HEIGHT}", preserveAspectRatio="none", width="100%", height=HEIGHT,
    )  # fmt: skip
    names = [clipped(printable(label), _LONGEST) for label in labels]
    marks = [
        _mark(label, index, band, across, down, what)
        for index, (label, line) in enumerate(zip(labels, bands, strict=True))
        for band in line
    ]
    return chart(
        f"{what} over the position in the context",
        f"A line for each file, from token {start} to {stop} of the chunks. The table has the values.",
        HEIGHT,
        *_axes(across, down, what + (", nats" if compared else "")),
        stretched,
        *_labels(names, bands, down),
        *marks,
        class_="plot labelled",
        style=f"--letters: {max(len(name) for name in names)}",
    )


def _line(index: int, line: Sequence[Band], across: Scale, down: Scale) -> list[Element]:
    """The line and the band around it, in percent across and pixels down."""
    middles = [100 * across.place((band.start + band.stop) / 2) for band in line]
    values = [value_of(band) for band in line]

    def path(heights: Sequence[float]) -> list[str]:
        return [f"{x:.1f},{HEIGHT * (1 - down.place(y)):.1f}" for x, y in zip(middles, heights, strict=True)]

    high, low = path([value.interval[1] for value in values]), path([value.interval[0] for value in values])
    colour = index % COLOURS
    around = element("polygon", class_=f"around f{colour}", points=" ".join([*high, *reversed(low)]))
    drawn = element("polyline", class_=f"line s{colour}", points=" ".join(path([value.value for value in values])))
    return [around, drawn]


def _mark(label: str, index: int, band: Band, across: Scale, down: Scale, what: str) -> Element:
    value = value_of(band)
    low, high = value.interval
    interval = f"95 % {short(low)} to {short(high)}"
    said = f"{label}, tokens {band.start} to {band.stop - 1}: {what} {short(value.value)}, {interval}"
    x, y = percent(across.place((band.start + band.stop) / 2)), HEIGHT * (1 - down.place(value.value))
    return mark(
        said,
        element("circle", class_="hit", cx=x, cy=y, r=9),
        element("circle", class_=f"knot f{index % COLOURS}", cx=x, cy=y, r=3),
    )


def _labels(labels: Sequence[str], bands: Sequence[tuple[Band, ...]], down: Scale) -> list[Element]:
    """The names of the lines at their ends, moved apart where they would overlap."""
    ends = [HEIGHT * (1 - down.place(value_of(line[-1]).value)) for line in bands]
    placed: dict[int, float] = {}
    lowest = -math.inf
    for index in sorted(range(len(ends)), key=ends.__getitem__):
        lowest = max(ends[index] + 4, lowest + _GAP)
        placed[index] = lowest
    return [
        element("text", label, class_=f"label t{index % COLOURS}", x="100%", dx=8, y=placed[index])
        for index, label in enumerate(labels)
    ]


def _axes(across: Scale, down: Scale, what: str) -> list[Element]:
    log = " (logarithmic)" if down.logarithmic else ""
    parts = [element("text", what + log, class_="axis", x=-52, y=-14)]
    for value in down.ticks:
        y = HEIGHT * (1 - down.place(value))
        parts.append(element("line", class_="grid", x1="0", x2="100%", y1=y, y2=y))
        parts.append(element("text", tick(value), class_="tick", x=-8, y=y + 4, text_anchor="end"))
    parts.append(element("line", class_="base", x1="0", x2="100%", y1=HEIGHT, y2=HEIGHT))
    for value in _positions(across):
        x = percent(across.place(value))
        parts.append(element("line", class_="base", x1=x, x2=x, y1=HEIGHT, y2=HEIGHT + 5))
        parts.append(element("text", f"{value:,.0f}", class_="tick", x=x, y=HEIGHT + 20, text_anchor="middle"))
    parts.append(element("text", "Position in the context", class_="axis", x="100%", y=HEIGHT + 40, text_anchor="end"))
    return parts


def _positions(across: Scale) -> list[float]:
    ticks = linear([across.low, across.high], most=5, padding=0).ticks
    return [value for value in ticks if across.low <= value <= across.high and value == int(value)]
