"""Scores of predictions: the loss of the right token, the Kullback-Leibler divergence from other predictions, the entropy.

Log-probabilities are never stored. A row is read once for its maximum, once for the sum of its exponentials, and once more
for a divergence. With a vocabulary of 262,144 tokens, passes over memory were a sixth of an evaluation.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from quantcli.kernels.elementwise import exponential
from quantcli.kernels.jit import inline
from quantcli.kernels.shorthand import F32, I32
from quantcli.kernels.simd import LANES, any_lane, convert, lane, load, local, maximum, select, splat, store, sum_lanes
from quantcli.kernels.threads import parallel_kernel
from quantcli.kernels.threads.loops import parallel_for

NEGLIGIBLE: Final = -16.0
"""Tokens with a log-probability of the base below this do not count in a divergence, as in llama.cpp."""

_LIMIT: Final = F32(NEGLIGIBLE)
_VANISHING: Final = F32(-100)
"""Below this, exp is no normal number of float32."""

_PLACES: Final = np.arange(LANES, dtype=np.int32)
_NO_NUMBER: Final = F32(np.nan)
_LOWEST: Final = F32(-np.inf)


@inline
def _is_nan(value: Any) -> Any:
    return value != value  # noqa: PLR0124 -- for numbers and vectors alike


@inline
def _top(logits: Any, first: Any, n: Any) -> Any:
    """The maximum of `n` numbers and its first index; NaN if one of them is NaN."""
    best, places, place = splat(_LOWEST, LANES), load(_PLACES, 0, LANES), splat(I32(0), LANES)
    found, whole, broken = place, n - n % LANES, _is_nan(best)
    for i in range(0, whole, LANES):
        value = load(logits, first + i, LANES)
        above = value > best
        best = select(above, value, best)
        found = select(above, places + I32(i), found)
        broken = broken | _is_nan(value)
    values, indices = local(LANES, np.float32), local(LANES, np.int32)
    store(values, 0, best)
    store(indices, 0, found)
    top, index = values[0], indices[0]
    for number in range(1, LANES):
        if values[number] > top or (values[number] == top and indices[number] < index):
            top, index = values[number], indices[number]
    is_broken = any_lane(broken)
    for i in range(whole, n):
        value = logits[np.uintp(first + i)]
        if value > top:
            top, index = value, I32(i)
        is_broken = is_broken or _is_nan(value)
    return (_NO_NUMBER if is_broken else top), index


@inline
def _log_sum(logits: Any, first: Any, n: Any, top: Any) -> Any:
    """log(sum(exp(logits - top))), float64."""
    total, whole = splat(np.float64(0), LANES), n - n % LANES
    for i in range(0, whole, LANES):
        total = total + convert(exponential(load(logits, first + i, LANES) - top), np.float64)
    rest = sum_lanes(total)
    for i in range(whole, n):
        rest += np.float64(lane(exponential(splat(logits[np.uintp(first + i)] - top, LANES)), 0))
    return np.log(rest)


@inline
def _divergence(logits: Any, base: Any, first: Any, n: Any, shift: Any, base_shift: Any) -> Any:
    """sum(p_base * (log(p_base) - log(p))). The shifts, float64, are the logarithms of both sums of exponentials."""
    total, whole = splat(np.float64(0), LANES), n - n % LANES
    # Differences of logits are exact where predictions are close. Differences of float32 log-probabilities are not.
    base_log_sum_32, shift_difference = F32(base_shift), F32(base_shift - shift)
    for i in range(0, whole, LANES):
        term = _term(load(logits, first + i, LANES), load(base, first + i, LANES), base_log_sum_32, shift_difference)
        total = total + convert(term, np.float64)
    rest = sum_lanes(total)
    for i in range(whole, n):
        value, other = splat(logits[np.uintp(first + i)], LANES), splat(base[np.uintp(first + i)], LANES)
        rest += np.float64(lane(_term(value, other, base_log_sum_32, shift_difference), 0))
    return rest


@inline
def _term(value: Any, base: Any, base_log_sum_32: Any, shift_difference: Any) -> Any:
    log_probability = base - base_log_sum_32
    term = exponential(log_probability) * (base - value - shift_difference)
    return select(log_probability > _LIMIT, term, splat(F32(0), LANES))


@inline
def _score_row(row: Any, logits: Any, targets: Any, losses: Any, tops: Any) -> None:
    n, flat = logits.shape[1], logits.reshape(-1)
    top, tops[row] = _top(flat, row * n, n)
    losses[row] = _log_sum(flat, row * n, n, top) - np.float64(logits[row, targets[row]] - top)


@parallel_kernel
def score(pool: Any, logits: Any, targets: Any, losses: Any, tops: Any) -> None:
    """Score predictions.

    logits   float32 (rows, vocabulary), C-contiguous
    targets  int64 (rows,): the right tokens
    losses   float64 (rows,): -log p of the right token, NaN where a logit of the row is NaN
    tops     int32 (rows,): the most likely tokens
    """
    parallel_for(pool, logits.shape[0], _score_row, (logits, targets, losses, tops))


@inline
def _compare_row(row: Any, logits: Any, base: Any, targets: Any, losses: Any, tops: Any, divergences: Any) -> None:
    n, flat, base_flat = logits.shape[1], logits.reshape(-1), base.reshape(-1)
    first = row * n
    top, tops[0, row] = _top(flat, first, n)
    base_top, tops[1, row] = _top(base_flat, first, n)
    log_sum, base_log_sum = _log_sum(flat, first, n, top), _log_sum(base_flat, first, n, base_top)
    losses[0, row] = log_sum - np.float64(logits[row, targets[row]] - top)
    losses[1, row] = base_log_sum - np.float64(base[row, targets[row]] - base_top)
    shift, base_shift = np.float64(top) + log_sum, np.float64(base_top) + base_log_sum
    divergences[row] = _divergence(flat, base_flat, first, n, shift, base_shift)


@parallel_kernel
def compare(pool: Any, logits: Any, base: Any, targets: Any, losses: Any, tops: Any, divergences: Any) -> None:
    """Score predictions, and compare them with those of a base.

    logits, base   float32 (rows, vocabulary), C-contiguous
    losses         float64 (2, rows), as in `score`: of the predictions, of the base
    tops           int32 (2, rows), likewise
    divergences    float64 (rows,): the Kullback-Leibler divergence from the base, sum(p_base * log(p_base / p)), in nats
    """
    parallel_for(pool, logits.shape[0], _compare_row, (logits, base, targets, losses, tops, divergences))


@inline
def _weighted(shifted: Any) -> Any:
    """exp(x), and x * exp(x), which is taken as 0 at minus infinity."""
    value = exponential(shifted)
    return value, value * maximum(shifted, splat(_VANISHING, LANES))


@inline
def _entropy_row(row: Any, logits: Any, entropies: Any) -> None:
    n, flat = logits.shape[1], logits.reshape(-1)
    first, whole = row * n, n - n % LANES
    top, _ = _top(flat, first, n)
    sums, moments = splat(np.float64(0), LANES), splat(np.float64(0), LANES)
    for i in range(0, whole, LANES):
        value, weighted = _weighted(load(flat, first + i, LANES) - top)
        sums, moments = sums + convert(value, np.float64), moments + convert(weighted, np.float64)
    total, moment = sum_lanes(sums), sum_lanes(moments)
    for i in range(whole, n):
        value, weighted = _weighted(splat(flat[np.uintp(first + i)] - top, LANES))
        total, moment = total + np.float64(lane(value, 0)), moment + np.float64(lane(weighted, 0))
    # The difference is 0, or NaN where the top is no finite number: `exponential` clamps that away.
    entropies[row] = np.log(total) - moment / total + np.float64(top - top)


@parallel_kernel
def entropy(pool: Any, logits: Any, entropies: Any) -> None:
    """The entropies of predictions. A kernel of its own: as a part of `compare` it slows that by a seventh.

    logits      float32 (rows, vocabulary), C-contiguous
    entropies   float64 (rows,): -sum(p * log(p)), in nats, NaN where a logit of the row is NaN
    """
    parallel_for(pool, logits.shape[0], _entropy_row, (logits, entropies))
