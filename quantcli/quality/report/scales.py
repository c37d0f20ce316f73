"""Axes: from values to fractions of their length, and round values to mark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, linear or logarithmic, with the values at its marks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """The fraction of the axis at which a value is; the ends for values beyond them."""
        if self.logarithmic:
            if value <= self.low:
                return 0.0
            return min(1.0, math.log(value / self.low) / math.log(self.high / self.low))
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def linear(values: Sequence[float], *, most: int = 6, unit: float = 1.0, padding: float = 0.08) -> Scale:
    """A linear axis around values, with about `most` marks at round multiples of `unit`."""
    low, high = min(values), max(values)
    spare = (high - low or abs(high) or unit) * padding
    low, high = max(0.0, low - spare) if low >= 0 else low - spare, high + spare
    step = _round_step((high - low) / unit / most) * unit
    first = math.ceil(low / step)
    return Scale(low, high, tuple(index * step for index in range(first, math.floor(high / step) + 1)))


def from_zero(highest: float) -> Scale:
    """A linear axis from zero, without marks."""
    return Scale(0.0, highest or 1.0, ())


def logarithmic(values: Sequence[float]) -> Scale:
    """A logarithmic axis around the positive values, with two marks or more: at 1, 2 and 5 times powers of ten, or only at
    the powers."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive) / 1.3, max(positive) * 1.3
    factors = (1, 2, 5) if high / low < 2000 else (1,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    marks = [factor * 10.0**power for power in powers for factor in factors]
    if sum(low <= mark <= high for mark in marks) < 2:
        low, high = max(mark for mark in marks if mark <= low), min(mark for mark in marks if mark >= high)
    return Scale(low, high, tuple(mark for mark in marks if low <= mark <= high), logarithmic=True)


def _round_step(step: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is no smaller."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def short(value: float) -> str:
    """A number with three significant digits, without an exponent where it is neither tiny nor huge."""
    if value and not 1e-5 <= abs(value) < 1e5:
        return f"{value:.2e}"
    digits = 3 if not value else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if value else "0"


def with_error(value: float, error: float) -> str:
    """A value and its standard error, in the decimals of the error's two significant digits: `0.0379 ± 0.0004`."""
    if not (error and 1e-7 <= abs(error) < 1e5):
        return f"{short(value)} ± {short(error)}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def tick(value: float) -> str:
    """A number at a mark of an axis."""
    if not value or 1e-4 <= abs(value) < 1e5:
        return f"{value:g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
