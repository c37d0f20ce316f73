"""Coordinate descent on the points of a super-block after it was rounded with error feedback, with a row in each lane.

The loss of the super-block's columns is the square of r = sqrt(D) (target - q), which is linear in the errors:

    r[k] = sqrt(D[k]) (t[k] - w[k]) + sum over j <= k of e[j] G[j, k]

where t are the targets before the super-block was rounded. With all other octets fixed, the loss of an octet is that of its
distance from the best weights, under the metric G G^T of its columns. With the metric factored as (I + V) E (I + V)^T,
its best point is found as it was under U and D (`lattice_points`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from quantcli.core.block_types import SUPER_BLOCK
from quantcli.kernels.half import float_to_half, half_to_float
from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.rounding.lattice_schemes import OCTET, LatticeScheme
from quantcli.kernels.rounding.stretch import STRETCH, feed
from quantcli.kernels.shorthand import F32
from quantcli.kernels.simd import LANES, convert, fma, grid_operations, load, local, select, splat, store

_gradient = grid_operations(1, OCTET, LANES)
_no_gradient, _add_gradient, _write_gradient = _gradient.zeros, _gradient.add_outer, _gradient.write

_OCTET_PLACES = OCTET * LANES
_METRIC_PLACES = OCTET * OCTET


@inline_once
def set_white(near: Any, weight_of: Any, white: Any) -> None:
    """Fill in G of a super-block, transposed: G[j, k] at k * STRETCH + j."""
    for k in range(SUPER_BLOCK):
        root = np.sqrt(weight_of[k])
        for j in range(SUPER_BLOCK):
            value = root if j == k else F32(0)
            if j < k:
                value = near[k * STRETCH + j] * root
            white[k * STRETCH + j] = value


@inline_once
def set_metric_factors(white: Any, factors: Any) -> None:
    """Fill in the factors of the metrics of all octets, as `set_octet_factors` does for U and D."""
    metric = local(_METRIC_PLACES, np.float64)
    for at in range(0, SUPER_BLOCK, OCTET):
        for i in range(OCTET):
            for j in range(i + 1):
                total = 0.0
                for k in range(at + i, SUPER_BLOCK):
                    total += np.float64(white[k * STRETCH + at + i]) * np.float64(white[k * STRETCH + at + j])
                metric[j * OCTET + i] = total
        for k in range(OCTET - 1, -1, -1):
            pivot = metric[k * OCTET + k]
            root = np.sqrt(pivot)
            for i in range(k):
                factor = metric[i * OCTET + k] / pivot
                factors[(at + k) * OCTET + i] = F32(-factor * root)
                for j in range(i + 1):
                    metric[j * OCTET + i] -= factor * metric[j * OCTET + k]
            factors[(at + k) * OCTET + k] = F32(-root)


@inline_once
def _set_residuals(targets: Any, weights: Any, errors: Any, white: Any, residuals: Any) -> None:
    for k in range(SUPER_BLOCK):
        off = load(targets, k * LANES, LANES) - load(weights, k * LANES, LANES)
        store(residuals, k * LANES, off * splat(white[k * STRETCH + k], LANES))
    for at in range(0, SUPER_BLOCK, OCTET):
        feed(residuals, errors, white, at, at + OCTET, at, SUPER_BLOCK)


@inline
def _set_best_weights(residuals: Any, white: Any, factors: Any, at: Any, current: Any, best: Any) -> Any:
    """Write the weights of an octet that are best with all others as they are. Returns the loss of the current ones above
    that of the best."""
    gradient, solved, total = local(_OCTET_PLACES, np.float32), local(_OCTET_PLACES, np.float32), _no_gradient()
    for k in range(at, SUPER_BLOCK):
        total = _add_gradient(total, residuals, k * LANES, white, k * STRETCH + at, 1)
    _write_gradient(total, gradient, 0, LANES)
    loss = splat(F32(0), LANES)
    for step in range(OCTET):
        k = OCTET - 1 - step
        value = load(gradient, k * LANES, LANES)
        for i in range(k + 1, OCTET):
            value = fma(load(solved, i * LANES, LANES), splat(factors[(at + i) * OCTET + k], LANES), value)
        root = splat(-factors[(at + k) * OCTET + k], LANES)
        value = value / root
        store(solved, k * LANES, value)
        store(best, (at + k) * LANES, load(current, (at + k) * LANES, LANES) + value / root)
        loss = fma(value, value, loss)
    return loss


@inline_once
def _refit(weights: Any, white: Any, d: Any, errors: Any, memory: Any, sums: Any) -> Any:
    """Fit d anew, with all points and quantized scales as they are. Returns it; residuals, errors and weights follow."""
    residuals, current, _ = memory
    zero = splat(F32(0), LANES)
    for k in range(SUPER_BLOCK):
        store(sums, k * LANES, zero)
    for at in range(0, SUPER_BLOCK, OCTET):
        feed(sums, current, white, at, at + OCTET, at, SUPER_BLOCK)
    squared = both = zero
    for k in range(SUPER_BLOCK):
        value = load(sums, k * LANES, LANES)
        squared = squared + value * value
        both = both + value * load(residuals, k * LANES, LANES)
    usable = (squared > zero) & (d > zero)
    step = select(usable, both / select(usable, squared, splat(F32(1), LANES)), zero)
    new = half_to_float(float_to_half(d + d * step))
    step = select(usable, (new - d) / select(usable, d, splat(F32(1), LANES)), zero)
    usable = usable & (step * step * squared < step * both * F32(2))
    step = select(usable, step, zero)
    for k in range(SUPER_BLOCK):
        place = k * LANES
        store(residuals, place, load(residuals, place, LANES) - step * load(sums, place, LANES))
        value = load(current, place, LANES) + step * load(current, place, LANES)
        store(current, place, value)
        store(errors, place, load(weights, place, LANES) - value)
    return select(usable, new, d)


def descent(scheme: LatticeScheme, round_octet: Callable[..., Any]) -> Callable[..., Any]:
    """The `inline_once` function that goes over a super-block `sweeps` times, and fits d anew after each. It returns d.

    targets, weights   of the super-block, before it was rounded
    white, factors     those of `set_white` and `set_metric_factors`
    d                  float16, as float32
    scales             the quantized scales, int32
    kept               errors, points and signs: are changed
    memory, tried      residuals, current and best weights; errors, points and signs under trial
    """
    group, dimensions, unit = scheme.group, scheme.dimensions, F32(scheme.unit)
    separate, variants, shifts = 2 if scheme.shifts == 1 else 1, 2 if scheme.shifts == 2 else 1, scheme.shifts
    points_of_octet = OCTET // dimensions

    @inline_once
    def sweep(white: Any, factors: Any, d: Any, scales: Any, kept: Any, memory: Any, tried: Any, space: Any) -> None:
        (residuals, current, best), (changes, tried_points, tried_signs), (errors, points, signs) = memory, tried, kept
        for at in range(0, SUPER_BLOCK, OCTET):
            index = convert(load(scales, at // group * LANES, LANES), np.float32)
            scale = d * unit * (index * F32(2) + F32(1))
            for first in range(separate):
                loss = _set_best_weights(residuals, white, factors, at, current, best)
                found = round_octet(
                    best, current, factors, at, scale, first, first + variants, changes, tried_points, tried_signs, space
                )
                old_signs, number = load(signs, at // OCTET * LANES, LANES), at // dimensions
                better = found < loss
                if shifts == 1:
                    better = better & (old_signs == np.int32(-first))
                for k in range(at, at + OCTET):
                    change = select(better, load(changes, k * LANES, LANES), splat(F32(0), LANES))
                    store(changes, k * LANES, change)
                    store(errors, k * LANES, load(errors, k * LANES, LANES) + change)
                    store(current, k * LANES, load(current, k * LANES, LANES) - change)
                for point in range(number, number + points_of_octet):
                    place = point * LANES
                    store(points, place, select(better, load(tried_points, place, LANES), load(points, place, LANES)))
                new_signs = select(better, load(tried_signs, at // OCTET * LANES, LANES), old_signs)
                store(signs, at // OCTET * LANES, new_signs)
                feed(residuals, changes, white, at, at + OCTET, at, SUPER_BLOCK)

    @inline_once
    def descend(
        targets: Any, weights: Any, white: Any, factors: Any, d: Any, scales: Any, kept: Any, memory: Any, tried: Any,
        space: Any, sweeps: Any,
    ) -> Any:  # fmt: skip
        _set_residuals(targets, weights, kept[0], white, memory[0])
        for k in range(SUPER_BLOCK):
            store(memory[1], k * LANES, load(weights, k * LANES, LANES) - load(kept[0], k * LANES, LANES))
        for _ in range(sweeps):
            sweep(white, factors, d, scales, kept, memory, tried, space)
            d = _refit(weights, white, d, kept[0], memory, memory[2])
        return d

    return descend
