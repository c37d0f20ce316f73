"""Rounding with error feedback onto the lattice types IQ1, IQ2 and IQ3: a codebook point stands for several weights.

Points are chosen by the loss after the feedback within their octet (`lattice_points`). The rest is as for scalar codes
(`feedback`): the scales of a super-block start from a search on its targets, regardless of the codebook. Group by group,
quantized scales near them are tried, each by rounding the group under it. The super-block is rounded under several d, and
the least loss wins. Then coordinate descent improves its points (`lattice_descent`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np

from quantcli.core.block_types import SUPER_BLOCK, BlockType
from quantcli.kernels.half import float_to_half, half_to_float
from quantcli.kernels.jit import inline, inline_once, kernel
from quantcli.kernels.rounding.lattice_descent import descent, set_metric_factors, set_white
from quantcli.kernels.rounding.lattice_points import octet_rounder, octet_space, set_octet_factors
from quantcli.kernels.rounding.lattice_schemes import OCTET, SCHEMES, LatticeScheme, halved_points
from quantcli.kernels.rounding.levels import levels_from
from quantcli.kernels.rounding.scale_fit import scale_fit
from quantcli.kernels.rounding.stretch import STRETCH, Effort, feed, keep
from quantcli.kernels.shorthand import F32, Bytes, Floats
from quantcli.kernels.simd import (
    LANES,
    address,
    advance,
    convert,
    load,
    local,
    maximum,
    minimum,
    rint,
    select,
    splat,
    store,
)

_INFINITY: Final = F32(np.inf)

_PLACES: Final = STRETCH * LANES
_FACTOR_PLACES: Final = STRETCH * OCTET
_MOST_POINTS: Final = 64 * LANES
_OCTETS: Final = SUPER_BLOCK // OCTET
_SIGN_PLACES: Final = _OCTETS * LANES
_MOST_GROUPS: Final = 16 * LANES

_FIT: Final = 1.05
"""The best scale, relative to that at which the levels fit best regardless of the codebook. Measured: it is about the same
for all types."""

_WIDTH: Final = 0.12
"""How far the values of d that are tried reach, relative to the best one expected."""

_SWEEPS: Final = 2
"""How often coordinate descent goes over the points of a super-block for each sweep of the effort: it costs little."""

_REACH: Final = 1 / 7
"""How many quantized scales are tried on each side of the one nearest to the fit, relative to their number."""


def _factors(count: int) -> Any:
    """The values of d that are tried, relative to that of the fit."""
    spread = np.linspace(1 - _WIDTH, 1 + _WIDTH, count) if count > 1 else np.ones(1)
    return (spread * _FIT).astype(np.float32)


@inline
def _allocate() -> Any:
    """Stack memory: the targets, weights, current targets and tried targets of a stretch; errors, points and signs of a
    scale that is tried, of a pass, and of the best pass; the fitted and the quantized scales; F; that of an octet."""
    stretch = local(_PLACES, np.float32), local(_PLACES, np.float32), local(_PLACES, np.float32), local(_PLACES, np.float32)
    tried = local(_PLACES, np.float32), local(_MOST_POINTS, np.int32), local(_SIGN_PLACES, np.int32)
    new = local(_PLACES, np.float32), local(_MOST_POINTS, np.int32), local(_SIGN_PLACES, np.int32)
    kept = local(_PLACES, np.float32), local(_MOST_POINTS, np.int32), local(_SIGN_PLACES, np.int32)
    fitted, none = local(_MOST_GROUPS, np.float32), local(_MOST_GROUPS, np.float32)
    scales = fitted, none, local(_MOST_GROUPS, np.int32), local(_MOST_GROUPS, np.int32)
    return stretch, tried, new, kept, scales, local(_FACTOR_PLACES, np.float32), octet_space()


def _group_rounder(scheme: LatticeScheme, round_octet: Callable[..., Any]) -> Callable[..., Any]:
    """The `inline_once` function that chooses the quantized scale of a group and rounds it. It returns the losses.

    trial, own   the targets and weights of the stretch
    at           the group's first column
    fit          the scales that fit best, relative to d
    d            times the unit
    current      memory for the targets under a scale that is tried
    tried, new   errors, points and signs of the stretch: memory for those under such a scale; receive those of the best one
    chosen       receives the quantized scale at `place`, int32
    """
    group, dimensions, top, shifts = scheme.group, scheme.dimensions, F32(scheme.top), scheme.shifts
    reach, separate, variants = int(scheme.top * _REACH), 2 if shifts == 1 else 1, 2 if shifts == 2 else 1
    candidates = (2 * reach + 1) * separate

    @inline_once
    def round_group(
        trial: Any, own: Any, near: Any, factors: Any, at: Any, fit: Any, d: Any, current: Any, tried: Any, new: Any,
        chosen: Any, place: Any, space: Any,
    ) -> Any:  # fmt: skip
        tried_errors, tried_points, tried_signs = tried
        errors, points, signs = new
        best, best_scale = splat(_INFINITY, LANES), splat(F32(0), LANES)
        nearest = rint((fit - F32(1)) * F32(0.5))
        for candidate in range(candidates):
            step, first = F32(candidate // separate - reach), candidate % separate
            index = minimum(maximum(nearest + step, splat(F32(0), LANES)), splat(top, LANES))
            scale, loss = d * (index * F32(2) + F32(1)), splat(F32(0), LANES)
            for k in range(at, at + group):
                store(current, k * LANES, load(trial, k * LANES, LANES))
            for octet in range(at, at + group, OCTET):
                loss = loss + round_octet(
                    current, own, factors, octet, scale, first, first + variants, tried_errors, tried_points, tried_signs,
                    space,
                )  # fmt: skip
                feed(current, tried_errors, near, octet, octet + OCTET, octet + OCTET, at + group)
            better = loss < best
            best, best_scale = select(better, loss, best), select(better, index, best_scale)
            keep(better, tried_errors, errors, at, at + group)
            keep(better, tried_points, points, at // dimensions, (at + group) // dimensions)
            keep(better, tried_signs, signs, at // OCTET, (at + group) // OCTET)
        store(chosen, place, convert(best_scale, np.int32))
        return best

    return round_group


def _block_rounder(scheme: LatticeScheme, effort: Effort, round_octet: Callable[..., Any]) -> Callable[..., Any]:
    """The `inline_once` function that rounds a super-block, with what `_allocate` gives as its `memory`. It returns d, not
    yet rounded to float16. Its first pass only fits the scales of all groups."""
    group, groups, dimensions, top = scheme.group, SUPER_BLOCK // scheme.group, scheme.dimensions, scheme.top
    values, unit = scheme.values, F32(scheme.unit)
    signed = values if scheme.shifts else (*(-value for value in reversed(values)), *values)
    factors, expected, passes = _factors(effort.scales), F32(_FIT), effort.scales
    fit, round_group = scale_fit(levels_from(signed), group, affine=False), _group_rounder(scheme, round_octet)

    @inline_once
    def round_block(near: Any, weight_of: Any, memory: Any) -> Any:
        (target, own, trial, current), tried, new, kept, (fitted, none, scales, kept_scales), octet_factors, space = memory
        best, best_d, largest = splat(_INFINITY, LANES), splat(F32(0), LANES), splat(F32(0), LANES)
        for number in range(-1, passes):
            loss, d = splat(F32(0), LANES), splat(F32(0), LANES)
            for k in range(SUPER_BLOCK):
                store(trial, k * LANES, load(target, k * LANES, LANES))
            if number >= 0:
                d = half_to_float(float_to_half(largest * (factors[number] / (unit * F32(2 * top + 1)))))
            for g in range(groups):
                at, place = g * group, g * LANES
                fit(trial, weight_of, at, fitted, none, place)
                if number >= 0:
                    relative = select(d > F32(0), load(fitted, place, LANES) * expected / (d * unit), splat(F32(0), LANES))
                    loss = loss + round_group(
                        trial, own, near, octet_factors, at, relative, d * unit, current, tried, new, scales, place, space
                    )
                    feed(trial, new[0], near, at, at + group, at + group, SUPER_BLOCK)
                else:
                    largest = maximum(largest, load(fitted, place, LANES))
            if number >= 0:
                better = loss < best
                best, best_d = select(better, loss, best), select(better, d, best_d)
                keep(better, new[0], kept[0], 0, SUPER_BLOCK)
                keep(better, new[1], kept[1], 0, SUPER_BLOCK // dimensions)
                keep(better, new[2], kept[2], 0, _OCTETS)
                keep(better, scales, kept_scales, 0, groups)
        return best_d

    return round_block


def _packing(scheme: LatticeScheme) -> Callable[..., None]:
    """The `inline_once` function that packs a super-block of each of `LANES` rows, which are `stride` bytes apart."""
    pack_block, index_of, count = scheme.pack, halved_points(scheme).indices, SUPER_BLOCK // scheme.dimensions

    @inline_once
    def pack(d: Any, points: Any, signs: Any, scales: Any, packed: Any, offset: Any, stride: Any) -> None:
        halves, indices, row_signs = local(LANES, np.uint16), local(64, np.int32), local(_OCTETS, np.int32)
        store(halves, 0, float_to_half(d))
        for lane in range(LANES):
            for number in range(count):
                indices[number] = index_of[points[number * LANES + lane]]
            for octet in range(_OCTETS):
                row_signs[octet] = signs[octet * LANES + lane]
            pack_block(scales, lane, halves[lane], indices, row_signs, packed, offset + lane * stride)

    return pack


@cache
def lattice_rounder(kind: BlockType, effort: Effort) -> Callable[..., None]:
    """The serial kernel that rounds a stretch of columns, as `feedback.stretch_rounder` gives it for scalar codes.

    Raises:
        KeyError: for a type that has no scheme.
    """
    scheme = SCHEMES[kind.name]
    round_octet, pack, block_bytes = octet_rounder(scheme), _packing(scheme), kind.block_bytes
    round_block, descend = _block_rounder(scheme, effort, round_octet), descent(scheme, round_octet)
    sweeps = _SWEEPS * effort.sweeps

    @kernel
    def round_stretch(
        targets: Floats, weights: Floats, near: Floats, weight_of: Floats, first: int, data: Bytes, errors: Floats
    ) -> None:
        rows = targets.shape[1]
        all_targets, all_weights = address(targets, np.float32), address(weights, np.float32)
        all_errors, feedback = address(errors, np.float32), address(near, np.float32)
        weight, packed = advance(address(weight_of, np.float32), first), address(data, np.uint8)
        memory = _allocate()
        (target, own, trial, current), tried, (spare, _, _), kept, (_, _, _, scales), factors, space = memory
        error, points, signs = kept
        for place in range(0, _MOST_POINTS, LANES):  # factors that are not finite choose no points: any valid ones do
            store(points, place, splat(np.int32(0), LANES))
        for place in range(0, _MOST_GROUPS, LANES):
            store(scales, place, splat(np.int32(0), LANES))
        for k in range(SUPER_BLOCK):
            store(error, k * LANES, splat(F32(0), LANES))
        for octet in range(_OCTETS):
            store(signs, octet * LANES, splat(np.int32(0), LANES))
        set_octet_factors(feedback, weight, SUPER_BLOCK, STRETCH, factors)
        metric_factors, matrix = local(_FACTOR_PLACES, np.float32), np.empty(STRETCH * STRETCH, np.float32)
        white = address(matrix, np.float32)
        if sweeps:
            set_white(feedback, weight, white)
            set_metric_factors(white, metric_factors)
        for row in range(0, rows, LANES):
            for k in range(SUPER_BLOCK):
                store(target, k * LANES, load(all_targets, (first + k) * rows + row, LANES))
                store(own, k * LANES, load(all_weights, (first + k) * rows + row, LANES))
            d = round_block(feedback, weight, memory)
            if sweeps:
                d = descend(
                    target, own, white, metric_factors, d, scales, kept, (spare, trial, current), tried, space, sweeps
                )
            offset = row * data.shape[1] + first // SUPER_BLOCK * block_bytes
            pack(d, points, signs, scales, packed, offset, data.shape[1])
            for k in range(SUPER_BLOCK):
                store(all_errors, (first + k) * rows + row, load(error, k * LANES, LANES))
        matrix[0] = 0  # an array is freed after its last use, and taking its address is one

    return round_stretch
