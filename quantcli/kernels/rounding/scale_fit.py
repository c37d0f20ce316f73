"""Search for the scale, and perhaps the minimum, of a group of weights, with a row in each lane.

Several starts are refined by weighted least squares: with the levels fixed, the best scale and minimum have a closed form.
Nothing is quantized here. Rounding with error feedback starts from the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from quantcli.kernels.jit import inline_once
from quantcli.kernels.rounding.levels import Levels
from quantcli.kernels.shorthand import F32
from quantcli.kernels.simd import LANES, absolute, load, maximum, minimum, select, splat, store

_STARTS: Final = 7
_INFINITY: Final = F32(np.inf)


def scale_fit(levels: Levels, group: int, *, affine: bool) -> Callable[..., None]:
    """An `inline_once` function `fit(values, weight_of, at, scales, minimums, place)`.

    values             LANES rows of a stretch: column k of the stretch at k * LANES
    weight_of          float32, the weight of each column's squared error
    at                 the group's first column in the stretch
    scales, minimums   receive the result at `place`: weight = scale * level - minimum, the minimum zero or more
    """
    return _affine_fit(levels, group) if affine else _symmetric_fit(levels, group)


def _widths(count: int) -> tuple[float, float]:
    """The first and the last start, relative to the scale at which the levels span the values. Measured on llama models:
    with few levels it pays to clip the largest values."""
    if count <= 8:
        return 0.6, 1.2
    return (0.8, 1.12) if count <= 32 else (0.97, 1.02)


def _factors(count: int) -> Any:
    first, last = _widths(count)
    return np.linspace(first, last, _STARTS).astype(np.float32)


def _affine_fit(levels: Levels, group: int) -> Callable[..., None]:
    nearest, span, factors = levels.nearest, F32(levels.values[-1] - levels.values[0]), _factors(len(levels.values))

    @inline_once
    def fit(values: Any, weight_of: Any, at: Any, scales: Any, minimums: Any, place: Any) -> None:
        zero = splat(F32(0), LANES)
        low, high, total = zero, zero, F32(0)
        for k in range(at, at + group):
            value = load(values, k * LANES, LANES)
            low, high, total = minimum(low, value), maximum(high, value), total + weight_of[k]
        best, best_scale, best_minimum = splat(_INFINITY, LANES), zero, -low
        for start in range(_STARTS):
            scale, lowest = (high - low) * (factors[start] / span), -low
            for _ in range(2):
                inverse = select(scale > zero, splat(F32(1), LANES) / scale, zero)
                loss = levels_sum = levels_squared = values_sum = both = zero
                for k in range(at, at + group):
                    value, weight = load(values, k * LANES, LANES), weight_of[k]
                    level = nearest((value + lowest) * inverse)
                    off = value - (scale * level - lowest)
                    weighted = level * weight
                    loss = loss + off * off * weight
                    levels_sum, levels_squared = levels_sum + weighted, levels_squared + weighted * level
                    values_sum, both = values_sum + value * weight, both + weighted * value
                better = loss < best
                best, best_scale = select(better, loss, best), select(better, scale, best_scale)
                best_minimum = select(better, lowest, best_minimum)
                determinant = levels_squared * total - levels_sum * levels_sum
                usable = determinant > zero
                divisor = select(usable, determinant, splat(F32(1), LANES))
                fitted = (both * total - levels_sum * values_sum) / divisor
                offset = (values_sum - fitted * levels_sum) / total
                above = offset > zero
                alone = both / select(levels_squared > zero, levels_squared, splat(F32(1), LANES))
                scale = select(usable, select(above, alone, fitted), scale)
                scale = maximum(scale, zero)
                lowest = select(usable, select(above, zero, -offset), lowest)
        store(scales, place, best_scale)
        store(minimums, place, best_minimum)

    return fit


def _symmetric_fit(levels: Levels, group: int) -> Callable[..., None]:
    nearest, ends = levels.nearest, (F32(1 / levels.values[0]), F32(1 / levels.values[-1]))
    factors, sides = _factors(len(levels.values)), 1 if levels.symmetric else 2

    @inline_once
    def fit(values: Any, weight_of: Any, at: Any, scales: Any, minimums: Any, place: Any) -> None:
        zero = splat(F32(0), LANES)
        largest = extreme = zero
        for k in range(at, at + group):
            value = load(values, k * LANES, LANES)
            larger = absolute(value) > largest
            largest, extreme = select(larger, absolute(value), largest), select(larger, value, extreme)
        if sides == 1:
            extreme = -largest
        best, best_scale = splat(_INFINITY, LANES), zero
        for side in range(sides):
            for start in range(_STARTS):
                scale = extreme * (ends[side] * factors[start])
                for _ in range(2):
                    inverse = select(scale != zero, splat(F32(1), LANES) / scale, zero)
                    loss = squared = both = zero
                    for k in range(at, at + group):
                        value, weight = load(values, k * LANES, LANES), weight_of[k]
                        level = nearest(value * inverse)
                        off = value - scale * level
                        weighted = level * weight
                        loss = loss + off * off * weight
                        squared, both = squared + weighted * level, both + weighted * value
                    better = loss < best
                    best, best_scale = select(better, loss, best), select(better, scale, best_scale)
                    fits = (squared > zero) & (both != zero)
                    scale = select(fits, both / select(fits, squared, splat(F32(1), LANES)), scale)
        store(scales, place, best_scale)
        store(minimums, place, zero)

    return fit
