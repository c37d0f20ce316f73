"""Statistics of scored predictions, by the definitions of llama.cpp's `tools/perplexity/perplexity.cpp`.

Standard errors treat the positions of a text as independent. Two models on the same text are compared by the differences at
each position, because the errors of both are strongly correlated.

llama-perplexity reads the base from a file of 16-bit log-probabilities, cut off 16 nats below the highest. So the base
perplexity that it prints in a comparison is slightly too low, and its log ratio too high. The base perplexity here is not
cut off, and agrees with llama-perplexity on the base alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

NORMAL_95: Final = 1.959963984540054
"""Standard errors on each side of a mean in a 95 % confidence interval: the 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A mean, or a function of one, with its standard error."""

    value: float
    stderr: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval."""
        return self.value - NORMAL_95 * self.stderr, self.value + NORMAL_95 * self.stderr


@dataclass(frozen=True)
class Divergence:
    """Statistics of the Kullback-Leibler divergences from the base at all scored positions, in nats, and of what follows
    from the predictions of both.

    stderr           the standard error of the mean
    log_ratio        log(perplexity / base perplexity)
    same_top         the fraction of positions where both models have the same most likely token
    rms_change       the root mean square of p - p_base for the right token ("RMS Δp" in llama-perplexity, as a percentage)
    base_entropy     the mean entropy of the base's predictions, in nats; None where it was not measured
    relative         the mean divergence divided by `base_entropy`; None likewise
    """

    base_perplexity: float
    base_stderr: float
    log_ratio: Estimate
    mean: float
    stderr: float
    median: float
    p99: float
    p999: float
    max: float
    same_top: float
    same_top_stderr: float
    rms_change: Estimate
    base_entropy: Estimate | None = None
    relative: Estimate | None = None


@dataclass(frozen=True)
class Evaluation:
    """The perplexity and its standard error over `tokens` scored predictions in `chunks` chunks."""

    perplexity: float
    stderr: float
    tokens: int
    chunks: int
    divergence: Divergence | None


@dataclass(frozen=True)
class Difference:
    """One model minus another on the same positions: the mean log perplexity and, with a base, the mean divergence."""

    log_perplexity: Estimate
    divergence: Estimate | None


@dataclass(frozen=True, eq=False)
class Scores:
    """What was measured at each scored position.

    losses           float64 (n,): -log p of the right token
    base_losses      likewise for the base, None without one
    divergences      float64 (n,): the Kullback-Leibler divergence from the base, None without one
    same_top         bool (n,): whether both models have the same most likely token, None without a base
    base_entropies   float64 (n,): the entropy of the base's predictions, in nats; None where it was not measured
    """

    losses: Doubles
    base_losses: Doubles | None = None
    divergences: Doubles | None = None
    same_top: NDArray[np.bool_] | None = None
    base_entropies: Doubles | None = None

    def part(self, chosen: NDArray[np.bool_]) -> Scores:
        """The scores of the positions where `chosen`, bool `(n,)`, is true."""

        def column(name: str) -> Any:
            whole = getattr(self, name)
            return None if whole is None else whole[chosen]

        return Scores(**{field.name: column(field.name) for field in fields(self)})

    def evaluation(self, chunks: int) -> Evaluation:
        """The statistics of a text of `chunks` chunks."""
        perplexity = _perplexity(self.losses)
        return Evaluation(perplexity.value, perplexity.stderr, len(self.losses), chunks, self._divergence())

    def difference(self, other: Scores) -> Difference:
        """`other` minus this."""
        divergence = None
        if self.divergences is not None and other.divergences is not None:
            divergence = mean(other.divergences - self.divergences)
        return Difference(mean(other.losses - self.losses), divergence)

    def _divergence(self) -> Divergence | None:
        if self.divergences is None or self.base_losses is None or self.same_top is None:
            return None
        base, average = _perplexity(self.base_losses), mean(self.divergences)
        median, p99, p999 = np.percentile(self.divergences, (50, 99, 99.9)).tolist()
        same = float(self.same_top.mean())
        entropies = self.base_entropies
        return Divergence(
            base_perplexity=base.value,
            base_stderr=base.stderr,
            log_ratio=mean(self.losses - self.base_losses),
            mean=average.value,
            stderr=average.stderr,
            median=median,
            p99=p99,
            p999=p999,
            max=float(self.divergences.max()),
            same_top=same,
            same_top_stderr=math.sqrt(same * (1 - same) / max(1, len(self.same_top) - 1)),
            rms_change=_root_mean_square(np.exp(-self.losses) - np.exp(-self.base_losses)),
            base_entropy=None if entropies is None else mean(entropies),
            relative=None if entropies is None else _ratio(self.divergences, entropies),
        )


def joined(parts: list[Scores]) -> Scores:
    """The scores of several chunks, all with a base or all without."""

    def column(name: str) -> Any:
        columns = [getattr(part, name) for part in parts]
        return None if columns[0] is None else np.concatenate(columns)

    return Scores(**{field.name: column(field.name) for field in fields(Scores)})


def mean(values: Doubles) -> Estimate:
    """The mean, with a standard error of 0 for a single value."""
    return Estimate(float(values.mean()), math.sqrt(values.var() / (len(values) - 1)) if len(values) > 1 else 0.0)


def pooled_mean(means: Sequence[Estimate], counts: Sequence[int]) -> Estimate:
    """The mean over several groups of values, from the mean of each group and the number of its values."""
    total = sum(counts)
    value = sum(found.value * count for found, count in zip(means, counts, strict=True)) / total
    spread = math.sqrt(sum((found.stderr * count) ** 2 for found, count in zip(means, counts, strict=True)))
    return Estimate(value, spread / total)


def _perplexity(losses: Doubles) -> Estimate:
    """exp of the mean loss. The standard error of the mean is propagated through exp."""
    loss = mean(losses)
    perplexity = math.exp(loss.value)
    return Estimate(perplexity, perplexity * loss.stderr)


def _root_mean_square(values: Doubles) -> Estimate:
    """The root of the mean square, whose standard error is propagated through the root."""
    square = mean(values * values)
    root = math.sqrt(square.value)
    return Estimate(root, square.stderr / (2 * root) if root else 0.0)


def _ratio(values: Doubles, divisors: Doubles) -> Estimate:
    """The ratio of two means over the same positions. To first order, its error is that of the mean residual."""
    divisor = float(divisors.mean())
    if not divisor:
        return Estimate(0.0, 0.0)
    ratio = float(values.mean()) / divisor
    return Estimate(ratio, mean(values - ratio * divisors).stderr / divisor)
