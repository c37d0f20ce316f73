"""What each file costs: its size, and its divergence from the base or, without one, its perplexity, over all texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantcli.quality.evaluate import TextEvaluation
from quantcli.quality.statistics import Divergence, Estimate, Evaluation, pooled_mean


@dataclass(frozen=True)
class Price:
    """A file's size in bytes and its loss of fidelity.

    cost          the mean divergence from the base in nats, or the perplexity
    perplexity    over all texts
    same_top      the fraction of positions with the base's most likely token; None without a base
    dominated     the label of a file that is no larger and costs no more, or None
    """

    label: str
    size: int
    cost: Estimate
    perplexity: Estimate
    same_top: Estimate | None
    dominated: str | None = None


def prices(labels: Sequence[str], sizes: Sequence[int], results: Sequence[TextEvaluation]) -> list[Price]:
    """The price of each file over all texts, each text weighted by its scored tokens."""
    columns = zip(*(result.evaluations for result in results), strict=True)
    found = [_price(*row) for row in zip(labels, sizes, columns, strict=True)]
    return [_judged(price, found) for price in found]


def _price(label: str, size: int, evaluations: Sequence[Evaluation]) -> Price:
    counts = [found.tokens for found in evaluations]
    loss = pooled_mean([log_perplexity(found) for found in evaluations], counts)
    perplexity = Estimate(math.exp(loss.value), math.exp(loss.value) * loss.stderr)
    beside: list[Divergence] = [found.divergence for found in evaluations if found.divergence is not None]
    if not beside:
        return Price(label, size, perplexity, perplexity, None)
    cost = pooled_mean([Estimate(found.mean, found.stderr) for found in beside], counts)
    same_top = pooled_mean([Estimate(found.same_top, found.same_top_stderr) for found in beside], counts)
    return Price(label, size, cost, perplexity, same_top)


def log_perplexity(found: Evaluation) -> Estimate:
    """The mean of -log p of the right token, in nats."""
    return Estimate(math.log(found.perplexity), found.stderr / found.perplexity)


def _judged(price: Price, others: Sequence[Price]) -> Price:
    """The price with the label of the cheapest file that dominates it."""
    better = [
        other
        for other in others
        if other.size <= price.size
        and other.cost.value <= price.cost.value
        and (other.size, other.cost.value) != (price.size, price.cost.value)
    ]
    best = min(better, key=lambda other: other.cost.value, default=None)
    return replace(price, dominated=best.label) if best else price
