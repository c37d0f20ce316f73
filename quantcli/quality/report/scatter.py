"""The plot of size against divergence, or perplexity. Dominated files are marked, and the others joined by a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from quantcli.core.display import binary_size, printable
from quantcli.core.errors import clipped
from quantcli.quality.report.elements import Element, chart, element, mark, percent
from quantcli.quality.report.prices import Price
from quantcli.quality.report.scales import Scale, linear, logarithmic, short, tick

HEIGHT: Final = 340
"""Pixels of the plot without its axes."""

Place = tuple[float, float, str]
"""Where a label is, in pixels from its point: horizontally and down to the baseline, and the text's anchor."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_NARROW: Final = 290
"""Pixels of the narrowest plot. Labels that do not overlap in it do not overlap in a wider one, but can be nearer there."""

_WIDE: Final = 480
"""Likewise for pages that are not narrow."""

_LETTER: Final = 7.2
"""About the width of a letter of a label, in pixels."""

_PLACES: Final[tuple[Place, ...]] = (
    (10, -7, "start"),
    (11, 4, "start"),
    (-10, 16, "end"),
    (-11, 4, "end"),
    (0, -13, "middle"),
    (0, 23, "middle"),
    (14, -22, "start"),
    (-14, 30, "end"),
    (0, -30, "middle"),
    (0, 40, "middle"),
)
"""Where a label may be, best first."""

_LONGEST: Final = 24
"""Letters of a label at a point."""

_UNITS: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))

@dataclass(frozen=True)
class Point:
    """A file in the plot: its position and error bar as fractions across and pixels down."""

    price: Price
    x: float
    y: float
    top: float
    bottom: float


def scatter(prices: Sequence[Price], base: str | None) -> Element:
    """The plot."""
    what = "mean KL divergence" if base else "perplexity"
    across, down = size_scale(prices), cost_scale(prices, divergence=base is not None)
    points = [_point(price, across, down) for price in prices]
    front = sorted((point for point in points if not point.price.dominated), key=lambda point: point.x)
    lines = [
        element("line", class_="front", x1=percent(a.x), y1=a.y, x2=percent(b.x), y2=b.y) for a, b in pairwise(front)
    ]
    places = zip(_label_places(points, _NARROW), _label_places(points, _WIDE), strict=True)
    return chart(
        f"Size against {what}",
        f"{len(prices)} files; those without a smaller or better one are joined by a line. The table below has the values.",
        HEIGHT,
        *_axes(across, down, what + (", nats" if base else "")),
        *lines,
        *(_marked(point, narrow, wide, what) for point, (narrow, wide) in zip(points, places, strict=True)),
        class_="plot",
    )


def size_scale(prices: Sequence[Price]) -> Scale:
    """The axis of sizes."""
    sizes = [price.size for price in prices]
    return linear(sizes, unit=_unit(max(sizes))[0], most=7)


def cost_scale(prices: Sequence[Price], *, divergence: bool) -> Scale:
    """The axis of costs: logarithmic for divergences. It has room for the 95 % intervals."""
    ends = [end for price in prices for end in price.cost.interval]
    values = [price.cost.value for price in prices]
    if not divergence:
        return linear([*ends, *values])
    lowest = min((value for value in values if value > 0), default=1e-6)
    return logarithmic([end for end in (*ends, *values) if end > lowest / 3])


def size_tick(value: float, highest: float) -> str:
    """A size at a mark, in the unit of the largest one."""
    size, name = _unit(highest)
    return f"{value / size:g} {name}"


def _unit(size: float) -> tuple[int, str]:
    return next(((unit, name) for unit, name in _UNITS if size >= unit), (1, "bytes"))


def _point(price: Price, across: Scale, down: Scale) -> Point:
    low, high = price.cost.interval
    y, bottom, top = (HEIGHT * (1 - down.place(value)) for value in (price.cost.value, low, high))
    return Point(price, across.place(price.size), y, top, bottom)


def _axes(across: Scale, down: Scale, what: str) -> list[Element]:
    log = " (logarithmic)" if down.logarithmic else ""
    parts = [element("text", f"{what[0].upper()}{what[1:]}{log}", class_="axis", x=-52, y=-14)]
    for value in down.ticks:
        y = HEIGHT * (1 - down.place(value))
        parts.append(element("line", class_="grid", x1="0", x2="100%", y1=y, y2=y))
        parts.append(element("text", tick(value), class_="tick", x=-8, y=y + 4, text_anchor="end"))
    parts.append(element("line", class_="base", x1="0", x2="100%", y1=HEIGHT, y2=HEIGHT))
    for index, value in enumerate(across.ticks):
        x, wide = percent(across.place(value)), " wide" if index % 2 else ""
        parts.append(element("line", class_="base", x1=x, x2=x, y1=HEIGHT, y2=HEIGHT + 5))
        text = size_tick(value, across.high)
        parts.append(element("text", text, class_=f"tick{wide}", x=x, y=HEIGHT + 20, text_anchor="middle"))
    parts.append(element("text", "File size", class_="axis", x="100%", y=HEIGHT + 40, text_anchor="end"))
    return parts


def _marked(point: Point, narrow: Place, wide: Place, what: str) -> Element:
    x, price = percent(point.x), point.price
    low, high = price.cost.interval
    said = f"{price.label}: {binary_size(price.size)}, {what} {short(price.cost.value)}, 95 % {short(low)} to {short(high)}"
    if price.dominated:
        said += f"; dominated by {price.dominated}"
    bar = element("line", class_="error", x1=x, x2=x, y1=point.top, y2=point.bottom)
    dot = element("circle", class_="dot", cx=x, cy=point.y, r=5.5)
    hit = element("circle", class_="hit", cx=x, cy=point.y, r=16)
    labels = [_label(point, narrow, "label")] if narrow == wide else []
    labels = labels or [_label(point, narrow, "label narrow"), _label(point, wide, "label wide")]
    kind = "point dominated" if price.dominated else "point"
    return mark(said, element("g", hit, bar, dot, *labels, class_=kind))


def _label(point: Point, place: Place, kind: str) -> Element:
    dx, dy, anchor = place
    x = percent(point.x)
    return element("text", _shown_label(point), class_=kind, x=x, y=point.y, dx=dx, dy=dy, text_anchor=anchor)


def _shown_label(point: Point) -> str:
    return clipped(printable(point.price.label), _LONGEST)


def _label_places(points: Sequence[Point], width: float) -> list[Place]:
    """A place for each label where, in a plot of this width, it covers no point and no other label, if there is one."""
    taken: list[Box] = [
        (point.x * width - 6, min(point.top, point.y - 6), point.x * width + 6, max(point.bottom, point.y + 6))
        for point in points
    ]
    found: list[Place] = []
    for point in points:
        boxes = [(place, _box(point, place, width)) for place in _PLACES]
        free = (each for each in boxes if _inside(each[1], width) and not any(_overlap(each[1], other) for other in taken))
        place, box = next(free, boxes[0])
        taken.append(box)
        found.append(place)
    return found


def _box(point: Point, place: Place, width: float) -> Box:
    dx, dy, anchor = place
    length = _LETTER * len(_shown_label(point))
    left = point.x * width + dx - {"start": 0.0, "middle": length / 2, "end": length}[anchor]
    return left, point.y + dy - 11, left + length, point.y + dy + 3


def _inside(box: Box, width: float) -> bool:
    return box[0] > -10 and box[2] < width + 24 and box[1] > -10 and box[3] < HEIGHT - 2


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
