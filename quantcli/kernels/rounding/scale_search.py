"""The scale searches of the block quantizers, one block per lane.

A quantizer searches for the scale (and minimum) of least quantization error over a handful of trial scales. The sums of a
trial are sequential: their order is part of the result. So vectorization is across blocks: `LANES` blocks are transposed
(`x[l * LANES + lane]`), and every lane runs llama.cpp's serial algorithm with the same order of operations and rounding.
The result is bit-identical for every vector width.

Sources: `make_qkx2_quants`, `make_qkx3_quants`, `make_qx_quants`, `make_q3_quants`, `make_qp_quants` in `ggml-quants.c`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.jit import inline
from quantcli.kernels.shorthand import F32, I32, Vec
from quantcli.kernels.simd import (
    LANES,
    absolute,
    all_lanes,
    any_lane,
    convert,
    load,
    maximum,
    minimum,
    reinterpret,
    select,
    splat,
    store,
)

TINY: Final = np.float32(1e-15)
"""`GROUP_MAX_EPS`: a block whose largest magnitude is below this is all zero."""

_ROUNDER: Final = np.float32(12582912.0)
"""1.5 * 2**23: after adding it, the low mantissa bits are the rounded integer."""

_ROUNDER_LIMIT: Final = np.float32(4194303.0)
"""Up to this magnitude, adding and subtracting `_ROUNDER` gives the rounded integer."""


@inline
def nearest_int(value: Vec) -> Vec:
    """float32 lanes to int32, rounding to nearest even. Beyond 2**22 in magnitude the result is as wrong as llama.cpp's:
    `nearest_int` in C reads the integer from the bits of `value + 1.5 * 2**23`, for infinities and NaN too."""
    bits = reinterpret(value + _ROUNDER, np.int32)
    return (bits & I32(0x007FFFFF)) - I32(0x00400000)


@inline
def finite_inverse(value: Any) -> Any:
    """The float32 reciprocal, with 0 in place of infinity.

    For zero this is as in llama.cpp. For subnormal scales llama.cpp multiplies by infinity and casts that to the integer 0,
    unless something was added first: callers handle that case.
    """
    inverse = F32(1) / value
    return inverse if abs(inverse) < F32(np.inf) else F32(0)


@inline
def clamped_level(value: Vec, low: int, high: int, exact: bool) -> Vec:
    """`nearest_int` clamped to `low..high`, as float32 lanes. Without `exact` the value must be within +-4194303, which
    saves two operations in the innermost loop of every search."""
    if exact:
        level = maximum(splat(I32(low), LANES), minimum(splat(I32(high), LANES), nearest_int(value)))
        return convert(level, np.float32)
    level = (value + _ROUNDER) - _ROUNDER
    return maximum(splat(F32(low), LANES), minimum(splat(F32(high), LANES), level))


@inline
def _affine_trial(
    x: NDArray[Any], weight: NDArray[Any], base: int, length: int, top: int, inverse: Vec, low: Vec, exact: bool
) -> tuple[Vec, Vec, Vec]:
    """The sums of one trial: of w * l, w * l * l and w * l * x, where l = round(inverse * (x - low)) in 0..top."""
    if exact:
        return _affine_sums(x, weight, base, length, top, inverse, low, True)
    return _affine_sums(x, weight, base, length, top, inverse, low, False)


@inline
def _affine_sums(
    x: NDArray[Any], weight: NDArray[Any], base: int, length: int, top: int, inverse: Vec, low: Vec, exact: bool
) -> tuple[Vec, Vec, Vec]:
    """`_affine_trial` with a literal `exact`: a loop of its own for each kind of level."""
    sum_l = splat(F32(0), LANES)
    sum_l2 = splat(F32(0), LANES)
    sum_xl = splat(F32(0), LANES)
    for element in range(length):
        value = load(x, base + element * LANES, LANES)
        level = clamped_level(inverse * (value - low), 0, top, exact)
        weighted = load(weight, element * LANES, LANES) * level
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * level
        sum_xl = sum_xl + weighted * value
    return sum_l, sum_l2, sum_xl


@inline
def _affine_error(
    x: NDArray[Any], weight: NDArray[Any], base: int, length: int, top: int, inverse: Vec, low: Vec, exact: bool,
    scale: Vec, offset: Vec, mean_absolute: bool,
) -> Vec:  # fmt: skip
    """The weighted error of `scale * l + offset` for the levels of a trial. Recomputing the levels is cheaper than storing
    them in the first loop and loading them here."""
    if exact:
        return _affine_cost(x, weight, base, length, top, inverse, low, True, scale, offset, mean_absolute)
    return _affine_cost(x, weight, base, length, top, inverse, low, False, scale, offset, mean_absolute)


@inline
def _affine_cost(
    x: NDArray[Any], weight: NDArray[Any], base: int, length: int, top: int, inverse: Vec, low: Vec, exact: bool,
    scale: Vec, offset: Vec, mean_absolute: bool,
) -> Vec:  # fmt: skip
    """`_affine_error` with a literal `exact`."""
    error = splat(F32(0), LANES)
    for element in range(length):
        value = load(x, base + element * LANES, LANES)
        level = clamped_level(inverse * (value - low), 0, top, exact)
        difference = scale * level + offset - value
        cost = absolute(difference) if mean_absolute else difference * difference
        error = error + load(weight, element * LANES, LANES) * cost
    return error


@inline
def affine_search(
    x: NDArray[Any], weight: NDArray[Any], base: int, length: int, top: int,
    first_step: float, step: float, steps: int, mean_absolute: bool,
) -> tuple[Vec, Vec, Vec, Vec]:  # fmt: skip
    """Fit `x ~ scale * l - minimum` with l in 0..top, by weighted least squares over trial scales (`make_qkx2_quants`,
    which on these inputs is also `make_qkx3_quants`).

    `x` holds the transposed blocks from `base` on, `weight` the weights from 0 on. Returns (scale, minimum, inverse, low):
    the levels are round(inverse * (x - low)) clamped, for which see `affine_level`. Flat blocks have scale, inverse and
    levels 0.
    """
    zero = splat(F32(0), LANES)
    smallest, high, sum_w, sum_x = _extremes_and_sums(x, weight, base, length)
    low = select(smallest > zero, zero, smallest)
    flat = high == low
    offset = low
    best_inverse = splat(F32(top), LANES) / (high - low)
    best_low = low
    scale = splat(F32(1), LANES) / best_inverse
    exact = not _in_range(best_inverse, smallest, high, low, flat)
    best = _affine_error(x, weight, base, length, top, best_inverse, low, exact, scale, low, mean_absolute)
    for trial in range(steps + 1):
        # llama.cpp measures every trial from the best minimum so far, not from the block's own.
        inverse = splat(F32(first_step) + F32(step) * F32(trial) + F32(top), LANES) / (high - offset)
        exact = not _in_range(inverse, smallest, high, offset, flat)
        sums = _affine_trial(x, weight, base, length, top, inverse, offset, exact)
        this_scale, this_low, determinant = _least_squares(sum_w, sum_x, sums)
        error = _affine_error(x, weight, base, length, top, inverse, offset, exact, this_scale, this_low, mean_absolute)
        better = (determinant > zero) & (error < best)
        best = select(better, error, best)
        scale = select(better, this_scale, scale)
        best_inverse = select(better, inverse, best_inverse)
        best_low = select(better, offset, best_low)
        offset = select(better, this_low, offset)
    scale = select(flat, zero, scale)
    best_inverse = select(flat, zero, best_inverse)
    best_low = select(flat, zero, best_low)
    # A flat (constant) block keeps its own minimum, from before any trial.
    return scale, -select(flat, low, offset), best_inverse, best_low


@inline
def _extremes_and_sums(x: NDArray[Any], weight: NDArray[Any], base: int, length: int) -> tuple[Vec, Vec, Vec, Vec]:
    """The least and the greatest x, and the sums of w and of w * x."""
    least = load(x, base, LANES)
    greatest = least
    sum_w = load(weight, 0, LANES)
    sum_x = sum_w * least
    for element in range(1, length):
        value = load(x, base + element * LANES, LANES)
        w = load(weight, element * LANES, LANES)
        least = select(value < least, value, least)
        greatest = select(value > greatest, value, greatest)
        sum_w = sum_w + w
        sum_x = sum_x + w * value
    return least, greatest, sum_w, sum_x


@inline
def _least_squares(sum_w: Vec, sum_x: Vec, sums: tuple[Vec, Vec, Vec]) -> tuple[Vec, Vec, Vec]:
    """The scale and offset of least error for the levels of a trial, the offset at most 0, and the determinant, which is
    positive where there is such a fit. `sums` is what `_affine_trial` returns."""
    zero = splat(F32(0), LANES)
    sum_l, sum_l2, sum_xl = sums
    determinant = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
    offset = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
    above = offset > zero
    return select(above, sum_xl / sum_l2, scale), select(above, zero, offset), determinant


@inline
def _in_range(inverse: Vec, smallest: Vec, high: Vec, low: Vec, flat: Vec) -> bool:
    """True if `inverse * (x - low)` stays within `_ROUNDER_LIMIT` for every x from `smallest` to `high`, in all lanes that
    are not flat."""
    limit = splat(_ROUNDER_LIMIT, LANES)
    fine = (absolute(inverse * (high - low)) < limit) & (absolute(inverse * (smallest - low)) < limit)
    return all_lanes(fine | flat)  # type: ignore[no-any-return]


@inline
def affine_level(value: Vec, inverse: Vec, low: Vec, top: int) -> Vec:
    """The int32 levels for a result of `affine_search`."""
    return maximum(splat(I32(0), LANES), minimum(splat(I32(top), LANES), nearest_int(inverse * (value - low))))


@inline
def block_extreme(x: NDArray[Any], base: int, length: int) -> tuple[Vec, Vec]:
    """The first of largest magnitude among `length` transposed elements from `base` on, and that magnitude."""
    largest = splat(F32(0), LANES)
    extreme = largest
    for element in range(length):
        value = load(x, base + element * LANES, LANES)
        above = absolute(value) > largest
        largest = select(above, absolute(value), largest)
        extreme = select(above, value, extreme)
    return extreme, largest


@inline
def symmetric_search(
    x: NDArray[Any], weight: NDArray[Any], base: int, length: int, half: int, exact: bool
) -> tuple[Vec, Vec, Vec]:
    """Fit `x ~ scale * l` with l in -half..half-1, by weighted least squares over 19 trial scales (`make_qx_quants` with
    `rmse_type` 1).

    `x` holds the transposed blocks from `base` on, `weight` the weights from 0 on. Returns (scale, inverse, empty): the
    levels are round(inverse * x) clamped, except in the lanes of `empty`, blocks below `TINY`, whose scale is 0 and whose
    stored levels (l + half) llama.cpp sets to 0. |inverse * x| never exceeds half + 1, so `exact` (see
    `clamped_level`) is for x that may be infinite or NaN: scales that are themselves results of sums.
    """
    zero = splat(F32(0), LANES)
    extreme, largest = block_extreme(x, base, length)
    empty = largest < TINY
    best_inverse = splat(F32(-half), LANES) / extreme
    sum_lx, sum_l2 = _symmetric_trial(x, weight, base, length, half, best_inverse, exact)
    scale = select(sum_l2 != zero, sum_lx / sum_l2, zero)
    best = scale * sum_lx
    for trial in range(-9, 10):
        if trial != 0:
            inverse = splat(-(F32(half) + F32(0.1) * F32(trial)), LANES) / extreme
            sum_lx, sum_l2 = _symmetric_trial(x, weight, base, length, half, inverse, exact)
            better = (sum_l2 > zero) & (sum_lx * sum_lx > best * sum_l2)
            scale = select(better, sum_lx / sum_l2, scale)
            best = select(better, scale * sum_lx, best)
            best_inverse = select(better, inverse, best_inverse)
    return select(empty, zero, scale), best_inverse, empty


@inline
def _symmetric_trial(
    x: NDArray[Any], weight: NDArray[Any], base: int, length: int, half: int, inverse: Vec, exact: bool
) -> tuple[Vec, Vec]:
    """The sums of w * x * l and w * l * l, where l = round(inverse * x) in -half..half-1."""
    sum_lx = splat(F32(0), LANES)
    sum_l2 = splat(F32(0), LANES)
    for element in range(length):
        value = load(x, base + element * LANES, LANES)
        w = load(weight, element * LANES, LANES)
        level = clamped_level(inverse * value, -half, half - 1, exact)
        sum_lx = sum_lx + w * value * level
        sum_l2 = sum_l2 + w * level * level
    return sum_lx, sum_l2


@inline
def _descent_start(x: NDArray[Any], base: int, length: int, half: int, levels: NDArray[Any]) -> tuple[Vec, Vec, Vec]:
    """Initial levels of a group, scaled by its element of largest magnitude, written to `levels[base:]`.

    Returns the sums of w * x * l and w * l * l with w = x * x, and the mask of blocks below `TINY`.
    """
    zero = splat(F32(0), LANES)
    extreme, largest = block_extreme(x, base, length)
    empty = largest < TINY
    inverse = select(empty, zero, splat(F32(-half), LANES) / extreme)
    sum_lx = zero
    sum_l2 = zero
    for element in range(length):
        value = load(x, base + element * LANES, LANES)
        level = clamped_level(inverse * value, -half, half - 1, False)
        w = value * value
        store(levels, base + element * LANES, level)
        sum_lx = sum_lx + w * value * level
        sum_l2 = sum_l2 + w * level * level
    return sum_lx, sum_l2, empty


@inline
def _descent_step(
    x: NDArray[Any], place: int, half: int, levels: NDArray[Any], sum_lx: Vec, sum_l2: Vec, changed: Vec
) -> tuple[Vec, Vec, Vec]:
    """A coordinate-descent step: requantize one level of each lane with the least-squares scale of the other levels, in the
    lanes where that lowers the error."""
    zero = splat(F32(0), LANES)
    value = load(x, place, LANES)
    level = load(levels, place, LANES)
    w = value * value
    without_lx = sum_lx - w * value * level
    without_l2 = sum_l2 - w * level * level
    moved = clamped_level(value * without_l2 / without_lx, -half, half - 1, True)
    new_lx = without_lx + w * value * moved
    new_l2 = without_l2 + w * moved * moved
    better = (
        (without_lx > zero) & (moved != level) & (new_l2 > zero) & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
    )
    store(levels, place, select(better, moved, level))
    return select(better, new_lx, sum_lx), select(better, new_l2, sum_l2), changed | better


@inline
def _descent_end(
    base: int, length: int, half: int, levels: NDArray[Any], sum_lx: Vec, sum_l2: Vec, empty: Vec
) -> Vec:
    """The scale of a group; the levels of blocks below `TINY` become -half, which is stored as 0."""
    zero = splat(F32(0), LANES)
    if any_lane(empty):
        for element in range(length):
            level = load(levels, base + element * LANES, LANES)
            store(levels, base + element * LANES, select(empty, splat(F32(-half), LANES), level))
    return select(empty, zero, select(sum_l2 > zero, sum_lx / sum_l2, zero))


@inline
def descent_search(
    x: NDArray[Any], base: int, length: int, half: int, levels: NDArray[Any]
) -> tuple[Vec, Vec, Vec, Vec]:
    """Fit `x ~ scale * l` with l in -half..half-1 and weights x * x, by coordinate descent (`make_q3_quants`): up to five
    passes, each moving one level at a time where that lowers the error.

    Processes four consecutive groups of `LANES` blocks from `base` on. A step depends on the division of the previous step,
    and four independent chains hide its latency (one alone was half as fast). A converged lane repeats itself, so all lanes
    go on until none changes. Writes the levels, float32, transposed, to `levels[base:]`. Returns the four groups' scales.
    """
    size = length * LANES
    lx_a, l2_a, empty_a = _descent_start(x, base, length, half, levels)
    lx_b, l2_b, empty_b = _descent_start(x, base + size, length, half, levels)
    lx_c, l2_c, empty_c = _descent_start(x, base + 2 * size, length, half, levels)
    lx_d, l2_d, empty_d = _descent_start(x, base + 3 * size, length, half, levels)
    for _ in range(5):
        changed_a = changed_b = changed_c = changed_d = empty_a & ~empty_a
        for place in range(base, base + size, LANES):
            lx_a, l2_a, changed_a = _descent_step(x, place, half, levels, lx_a, l2_a, changed_a)
            lx_b, l2_b, changed_b = _descent_step(x, place + size, half, levels, lx_b, l2_b, changed_b)
            lx_c, l2_c, changed_c = _descent_step(x, place + 2 * size, half, levels, lx_c, l2_c, changed_c)
            lx_d, l2_d, changed_d = _descent_step(x, place + 3 * size, half, levels, lx_d, l2_d, changed_d)
        if not any_lane(changed_a | changed_b | changed_c | changed_d):
            break
    return (
        _descent_end(base, length, half, levels, lx_a, l2_a, empty_a),
        _descent_end(base + size, length, half, levels, lx_b, l2_b, empty_b),
        _descent_end(base + 2 * size, length, half, levels, lx_c, l2_c, empty_c),
        _descent_end(base + 3 * size, length, half, levels, lx_d, l2_d, empty_d),
    )


@inline
def positive_search(x: NDArray[Any], weight: NDArray[Any], length: int, top: int, levels: NDArray[Any]) -> Vec:
    """Fit `x ~ scale * l`, x >= 0, with l in 0..top (`make_qp_quants`): nine trial scales, then coordinate descent.

    `x` and `weight` are transposed. Writes the levels, int32 of 0..255, to `levels` and returns the scale. Levels are bytes
    (uint8) in llama.cpp: the few negative ones wrap here as there.
    """
    zero = splat(F32(0), LANES)
    largest = zero
    for element in range(length):
        largest = maximum(largest, load(x, element * LANES, LANES))
    empty = largest < TINY
    best_inverse = splat(F32(top), LANES) / largest
    scale = splat(F32(1), LANES) / best_inverse
    best = zero
    for element in range(length):
        value = load(x, element * LANES, LANES)
        difference = value - scale * convert(nearest_int(best_inverse * value) & I32(255), np.float32)
        best = best + load(weight, element * LANES, LANES) * difference * difference
    for trial in range(-4, 5):
        if trial != 0:
            inverse = splat(F32(0.1) * F32(trial) + F32(top), LANES) / largest
            this_scale = splat(F32(1), LANES) / inverse
            error = zero
            for element in range(length):
                value = load(x, element * LANES, LANES)
                level = minimum(splat(I32(top), LANES), nearest_int(inverse * value))
                difference = value - this_scale * convert(level, np.float32)
                error = error + load(weight, element * LANES, LANES) * difference * difference
            better = error < best
            best = select(better, error, best)
            best_inverse = select(better, inverse, best_inverse)
    sum_lx = zero
    sum_l2 = zero
    for element in range(length):
        value = load(x, element * LANES, LANES)
        w = load(weight, element * LANES, LANES)
        level = minimum(splat(I32(top), LANES), nearest_int(best_inverse * value))
        store(levels, element * LANES, select(empty, splat(I32(0), LANES), level & I32(255)))
        rounded = convert(level, np.float32)
        sum_lx = sum_lx + w * value * rounded
        sum_l2 = sum_l2 + w * rounded * rounded
    sum_lx, sum_l2 = _positive_descent(x, weight, length, top, levels, empty, sum_lx, sum_l2)
    return select(empty, zero, select(sum_l2 > zero, sum_lx / sum_l2, zero))


@inline
def _positive_descent(
    x: NDArray[Any], weight: NDArray[Any], length: int, top: int, levels: NDArray[Any], empty: Vec, sum_lx: Vec, sum_l2: Vec
) -> tuple[Vec, Vec]:
    """Coordinate descent: up to five passes, changing one level at a time where that lowers the error. Returns the final
    sums."""
    zero = splat(F32(0), LANES)
    for _ in range(5):
        changed = empty & ~empty
        for element in range(length):
            value = load(x, element * LANES, LANES)
            w = load(weight, element * LANES, LANES)
            level = load(levels, element * LANES, LANES)
            rounded = convert(level, np.float32)
            without_lx = sum_lx - w * value * rounded
            without_l2 = sum_l2 - w * rounded * rounded
            moved = minimum(splat(I32(top), LANES), nearest_int(value * without_l2 / without_lx))
            target = convert(moved, np.float32)
            new_lx = without_lx + w * value * target
            new_l2 = without_l2 + w * target * target
            better = (
                (without_lx > zero)
                & (without_l2 > zero)
                & (moved != level)
                & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
                & ~empty
            )
            store(levels, element * LANES, select(better, moved & I32(255), level))
            sum_lx = select(better, new_lx, sum_lx)
            sum_l2 = select(better, new_l2, sum_l2)
            changed = changed | better
        if not any_lane(changed):
            break
    return sum_lx, sum_l2
