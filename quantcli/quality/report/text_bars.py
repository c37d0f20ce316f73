"""Bars of the divergence, or the perplexity, of one file on each text, with 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from quantcli.core.display import printable
from quantcli.core.errors import clipped
from quantcli.quality.report.content import ReportFile, ReportText
from quantcli.quality.report.elements import Element, chart, element, mark, percent
from quantcli.quality.report.scales import from_zero, short
from quantcli.quality.statistics import Estimate, Evaluation

_ROW: Final = 38
_LONGEST: Final = 28
"""Letters of the name of a text."""


def cost_of(found: Evaluation) -> Estimate:
    """The mean divergence, or without a base the perplexity."""
    if found.divergence is None:
        return Estimate(found.perplexity, found.stderr)
    return Estimate(found.divergence.mean, found.divergence.stderr)


def text_bars(file: ReportFile, index: int, texts: Sequence[ReportText]) -> Element:
    """The bars of the file at this index. Its largest value has the whole width."""
    costs = [cost_of(text.result.evaluations[index]) for text in texts]
    scale = from_zero(max(max(cost.value, cost.interval[1]) for cost in costs))
    what = "KL divergence" if texts[0].result.evaluations[index].divergence else "perplexity"
    rows = []
    for number, (text, cost) in enumerate(zip(texts, costs, strict=True)):
        y = _ROW * number
        low, high = cost.interval
        left, right = percent(scale.place(low)), percent(scale.place(high))
        rows.append(
            mark(
                f"{file.label}, {text.name}: {what} {short(cost.value)}, 95 % {short(low)} to {short(high)}",
                element("rect", class_="hit", x="0", y=y, width="100%", height=_ROW - 4),
                element("text", clipped(printable(text.name), _LONGEST), class_="name", x="0", y=y + 13),
                element("text", short(cost.value), class_="value", x="100%", y=y + 13, text_anchor="end"),
                element("rect", class_="bar", x="0", y=y + 19, width=percent(scale.place(cost.value)), height=9, rx=1.5),
                element("line", class_="error", x1=left, x2=right, y1=y + 23.5, y2=y + 23.5),
                *(element("line", class_="error", x1=x, x2=x, y1=y + 20, y2=y + 27) for x in (left, right)),
            )
        )
    said = "A bar for each text; the table has the values."
    return chart(f"{what} of {file.label} by text", said, _ROW * len(texts), *rows)


def by_damage(texts: Sequence[ReportText]) -> list[ReportText]:
    """The texts, the one that suffers most over all files first: by the geometric mean of what they cost."""
    def damage(text: ReportText) -> float:
        return sum(math.log(max(1e-12, cost_of(found).value)) for found in text.result.evaluations)

    return sorted(texts, key=damage, reverse=True)
