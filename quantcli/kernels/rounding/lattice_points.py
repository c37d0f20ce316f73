"""The best codebook points for an octet of weights, with a row in each lane.

The loss of an octet is the sum over its columns of D[k] (target[k] - q[k])^2, where the errors of its earlier columns are
part of target[k] (see `feedback`). Times sqrt(D[k]), target[k] - q[k] is

    b[k] + sum over i <= k of q[i] F[i, k]        F[i, k] = -sqrt(D[k]) U[i, k]        F[k, k] = -sqrt(D[k])

where b depends on the row alone. The second half of a point adds the same to this sum whatever the first half is. So the
sums of all second halves are made first. A point then costs one addition and one square for each column of its second half.

Every point of the codebook is compared. Its signs are those of the weights that would make the loss zero. Where the number
of minus signs must be even, the least costly of them is changed. To try one more change took twice the time for 0.5 percent
less loss of whole rows, and all signs with every point gave no more than that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.rounding.lattice_schemes import LEVEL_SHIFT, OCTET, LatticeScheme, halved_points
from quantcli.kernels.shorthand import F32, I32
from quantcli.kernels.simd import LANES, fma, load, local, select, splat, store

_INFINITY: Final = F32(np.inf)

_OCTET_PLACES: Final = OCTET * LANES
_MOST_LEVELS: Final = 8
_TABLE_PLACES: Final = OCTET * _MOST_LEVELS * LANES
_MOST_HALVES: Final = 81
_TAIL_PLACES: Final = _MOST_HALVES * 4 * LANES


class OctetSpace(NamedTuple):
    """Scratch memory, `LANES` float32 or int32 for each place.

    base, rest      b of the octet's columns; the same with what the points chosen so far contribute
    free            the weights that would make the loss zero
    table           the values of all levels of each column
    tails, heads    the sums of all second halves, and of one first half, in the columns of second halves
    chosen, points  the values of the columns and the positions of the points of the current variant
    best            those of the best variant so far
    best_points     likewise
    """

    base: Any
    rest: Any
    free: Any
    table: Any
    tails: Any
    heads: Any
    chosen: Any
    points: Any
    best: Any
    best_points: Any


@inline
def octet_space() -> OctetSpace:
    """Stack memory of an octet."""
    return OctetSpace(
        local(_OCTET_PLACES, np.float32), local(_OCTET_PLACES, np.float32), local(_OCTET_PLACES, np.float32),
        local(_TABLE_PLACES, np.float32), local(_TAIL_PLACES, np.float32), local(_OCTET_PLACES, np.float32),
        local(_OCTET_PLACES, np.float32), local(_OCTET_PLACES, np.int32), local(_OCTET_PLACES, np.float32),
        local(_OCTET_PLACES, np.int32),
    )  # fmt: skip


@inline_once
def set_octet_factors(near: Any, weight_of: Any, width: Any, stride: Any, factors: Any) -> None:
    """Fill in F of all octets of a stretch: F[i, k] of columns `at` + i and `at` + k at (at + k) * OCTET + i.

    near    U, transposed, with rows of `stride`
    """
    for at in range(0, width, OCTET):
        for k in range(OCTET):
            root = np.sqrt(weight_of[at + k])
            for i in range(k):
                factors[(at + k) * OCTET + i] = -root * near[(at + k) * stride + at + i]
            factors[(at + k) * OCTET + k] = -root


@inline
def _with_factors(total: Any, values: Any, first: Any, last: Any, factors: Any, column: Any) -> Any:
    """total + the sum over i of values[i] F[i, column], for columns `first` to `last` - 1 of an octet."""
    for i in range(first, last):
        total = fma(load(values, i * LANES, LANES), splat(factors[column * OCTET + i], LANES), total)
    return total


@inline
def _set_base(targets: Any, weights: Any, factors: Any, at: Any, space: OctetSpace) -> None:
    """Fill in `base` and `free`."""
    for k in range(OCTET):
        place = (at + k) * LANES
        diagonal = splat(factors[(at + k) * OCTET + k], LANES)
        total = load(targets, place, LANES) * diagonal
        for i in range(k):
            total = fma(load(weights, (at + i) * LANES, LANES), splat(factors[(at + k) * OCTET + i], LANES), total)
        store(space.base, k * LANES, -total)
        store(space.free, k * LANES, _with_factors(-total, space.free, 0, k, factors, at + k) / -diagonal)


def _searcher(scheme: LatticeScheme) -> Callable[..., Any]:
    """The `inline_once` function that finds the best point for the columns of an octet from `first` on, given `rest` and
    `table`. It returns the losses and the positions among the sorted points."""
    table = halved_points(scheme)
    digits, starts, seconds = table.digits.reshape(-1), table.starts, table.seconds
    half, levels, halves = scheme.dimensions // 2, len(scheme.values), len(table.digits)

    @inline
    def value(values: Any, column: Any, digit: Any) -> Any:
        return load(values, (column * levels + digits[digit]) * LANES, LANES)

    @inline
    def set_tails(factors: Any, at: Any, first: Any, space: OctetSpace) -> None:
        for number in range(halves):
            for k in range(half):
                total = splat(F32(0), LANES)
                for i in range(k + 1):
                    factor = factors[(at + first + half + k) * OCTET + first + half + i]
                    total = fma(value(space.table, first + half + i, number * half + i), splat(factor, LANES), total)
                store(space.tails, (number * half + k) * LANES, total)

    @inline
    def set_heads(factors: Any, at: Any, first: Any, number: Any, space: OctetSpace) -> Any:
        loss = splat(F32(0), LANES)
        for k in range(2 * half):
            total = load(space.rest, (first + k) * LANES, LANES)
            for i in range(min(k + 1, half)):
                factor = factors[(at + first + k) * OCTET + first + i]
                total = fma(value(space.table, first + i, number * half + i), splat(factor, LANES), total)
            if k < half:
                loss = fma(total, total, loss)
            else:
                store(space.heads, (k - half) * LANES, total)
        return loss

    @inline_once
    def search(factors: Any, at: Any, first: Any, space: OctetSpace) -> Any:
        set_tails(factors, at, first, space)
        best, best_at = splat(_INFINITY, LANES), splat(I32(0), LANES)
        for number in range(halves):
            start, stop = starts[number], starts[number + 1]
            if start == stop:
                continue
            begun = set_heads(factors, at, first, number, space)
            for point in range(start, stop):
                tail, loss = np.intp(seconds[point]) * half * LANES, begun
                for k in range(half):
                    off = load(space.heads, k * LANES, LANES) + load(space.tails, tail + k * LANES, LANES)
                    loss = fma(off, off, loss)
                better = loss < best
                best = select(better, loss, best)
                best_at = select(better, splat(I32(point), LANES), best_at)
        return best, best_at

    return search


@inline
def _made_even(signs: Any, free: Any, factors: Any, at: Any) -> Any:
    """The minus signs of an octet, as bits, with the least costly sign changed where their number is odd."""
    none, one = splat(I32(0), LANES), splat(I32(1), LANES)
    least, cheapest = splat(_INFINITY, LANES), none
    for k in range(OCTET):
        off = load(free, k * LANES, LANES) * splat(factors[(at + k) * OCTET + k], LANES)
        better = off * off < least
        least = select(better, off * off, least)
        cheapest = select(better, splat(I32(k), LANES), cheapest)
    folded = signs ^ (signs >> I32(4))
    folded = folded ^ (folded >> I32(2))
    odd = ((folded ^ (folded >> I32(1))) & I32(1)) != none
    return select(odd, signs ^ (one << cheapest), signs)


def _table_setter(scheme: LatticeScheme) -> Callable[..., Any]:
    """The `inline_once` function that fills in `table` for a variant, and returns the signs (or -1 for a shift down)."""
    values, levels = np.array(scheme.values, np.float32), len(scheme.values)
    if scheme.shifts:

        @inline_once
        def set_shifted(space: OctetSpace, factors: Any, at: Any, scale: Any, variant: Any) -> Any:
            shift = F32(1 - 2 * variant) * LEVEL_SHIFT
            for level in range(levels):
                value = scale * (values[level] + shift)
                for k in range(OCTET):
                    store(space.table, (k * levels + level) * LANES, value)
            return splat(I32(-variant), LANES)

        return set_shifted
    even = scheme.even_signs

    @inline_once
    def set_signed(space: OctetSpace, factors: Any, at: Any, scale: Any, variant: Any) -> Any:
        none = splat(I32(0), LANES)
        signs = none
        for k in range(OCTET):
            minus = load(space.free, k * LANES, LANES) < F32(0)
            signs = signs | select(minus, splat(I32(1 << k), LANES), none)
        if even:
            signs = _made_even(signs, space.free, factors, at)
        for k in range(OCTET):
            minus = (signs & I32(1 << k)) != none
            for level in range(levels):
                value = scale * values[level]
                store(space.table, (k * levels + level) * LANES, select(minus, -value, value))
        return signs

    return set_signed


def octet_rounder(scheme: LatticeScheme) -> Callable[..., Any]:
    """The `inline_once` function that rounds the octet from column `at` of a stretch on. It returns the losses.

    factors       F of the stretch's octets
    scale         of the octet's group, in each lane
    first, last   the variants that are tried: 0 is a shift up, 1 is one down. Points with signs have variant 0 alone
    errors        receives w - q, at the column
    points        receives the positions of the points among the sorted ones, at the number of the point
    signs         receives the signs, at the number of the octet
    """
    search, set_table = _searcher(scheme), _table_setter(scheme)
    levels_of = halved_points(scheme).levels.reshape(-1)
    dimensions, levels = scheme.dimensions, len(scheme.values)
    points_of_octet = OCTET // dimensions

    @inline
    def take(space: OctetSpace, first: Any, number: Any) -> None:
        for lane in range(LANES):
            point = np.intp(space.points[number * LANES + lane]) * dimensions
            for k in range(dimensions):
                place = (first + k) * levels + levels_of[point + k]
                space.chosen[(first + k) * LANES + lane] = space.table[place * LANES + lane]

    @inline_once
    def round_octet(
        targets: Any, weights: Any, factors: Any, at: Any, scale: Any, first: Any, last: Any, errors: Any, points: Any,
        signs: Any, space: OctetSpace,
    ) -> Any:  # fmt: skip
        _set_base(targets, weights, factors, at, space)
        best, best_signs = splat(_INFINITY, LANES), splat(I32(0), LANES)
        for variant in range(first, last):
            minus, loss = set_table(space, factors, at, scale, variant), splat(F32(0), LANES)
            for number in range(points_of_octet):
                start = number * dimensions
                for k in range(start, start + dimensions):
                    base = load(space.base, k * LANES, LANES)
                    store(space.rest, k * LANES, _with_factors(base, space.chosen, 0, start, factors, at + k))
                added, position = search(factors, at, start, space)
                store(space.points, number * LANES, position)
                take(space, start, number)
                loss = loss + added
            better = loss < best
            best = select(better, loss, best)
            best_signs = select(better, minus, best_signs)
            for k in range(OCTET):
                place = k * LANES
                store(space.best, place, select(better, load(space.chosen, place, LANES), load(space.best, place, LANES)))
            for number in range(points_of_octet):
                place, old = number * LANES, load(space.best_points, number * LANES, LANES)
                store(space.best_points, place, select(better, load(space.points, place, LANES), old))
        for k in range(OCTET):
            place = (at + k) * LANES
            store(errors, place, load(weights, place, LANES) - load(space.best, k * LANES, LANES))
        for number in range(points_of_octet):
            place = (at // dimensions + number) * LANES
            store(points, place, load(space.best_points, number * LANES, LANES))
        store(signs, at // OCTET * LANES, best_signs)
        return best

    return round_octet
