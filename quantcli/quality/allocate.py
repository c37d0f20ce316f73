"""The allocation of types: for each tensor one of its candidates, with the least summed loss within a number of bytes.

This is a multiple-choice knapsack problem, solved by dynamic programming over the bytes beyond the smallest candidates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType

MOST_STATES: Final = 1 << 15
"""The most sums of bytes that are told apart. Where all sizes have a large common divisor there are fewer, and the result
is the optimum. Else sizes are rounded to this fraction of the room, and sums are still exact."""


@dataclass(frozen=True)
class Candidate:
    """A type that a tensor may have: its bytes in the file, and the loss that it causes."""

    type: BlockType
    nbytes: int
    loss: float


def allocate(candidates: Mapping[str, Sequence[Candidate]], budget: int) -> dict[str, Candidate]:
    """Choose a candidate for each tensor: the least summed loss of all choices of at most `budget` bytes.

    The result is deterministic. Of equal losses the one with the smaller candidates of the first tensors wins.

    Raises:
        ValueError: if the smallest candidates have more than `budget` bytes.
    """
    tensors = [_useful(options) for options in candidates.values()]
    room = min(budget, sum(options[-1].nbytes for options in tensors)) - sum(options[0].nbytes for options in tensors)
    if room < 0:
        raise ValueError(f"{budget} bytes are less than those of the smallest candidates")
    extras = [np.array([option.nbytes - options[0].nbytes for option in options]) for options in tensors]
    unit = max(1, math.gcd(*(int(extra) for column in extras for extra in column)))
    exact = room // unit <= MOST_STATES
    unit = unit if exact else math.ceil(room / MOST_STATES)
    # Rounded costs may add up to more than the room by half a unit for each tensor although the bytes do not.
    states = room // unit + 1 + (0 if exact else len(tensors))
    losses, used = np.full(states, np.inf), np.zeros(states, np.int64)
    losses[0] = 0
    choices = []
    for options, extra in zip(tensors, extras, strict=True):
        costs = (extra + unit // 2) // unit
        losses, used, chosen = _add_tensor(losses, used, costs, extra, [option.loss for option in options])
        choices.append((costs, chosen))
    state = int(np.where(used <= room, losses, np.inf).argmin())
    picked: list[int] = []
    for costs, chosen in reversed(choices):
        picked.append(int(chosen[state]))
        state -= int(costs[picked[-1]])
    return {
        name: options[place] for name, options, place in zip(candidates, tensors, reversed(picked), strict=True)
    }


def _useful(options: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that no other one beats, by size: each has less loss than all smaller ones."""
    useful: list[Candidate] = []
    for option in sorted(options, key=lambda option: (option.nbytes, option.loss)):
        if not useful or option.loss < useful[-1].loss:
            useful.append(option)
    return useful


def _add_tensor(
    losses: NDArray[np.float64],
    used: NDArray[np.int64],
    costs: NDArray[np.int64],
    extras: NDArray[np.int64],
    own: Sequence[float],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int16]]:
    """One more tensor: for each sum of rounded costs the least loss, its exact bytes, and the candidate of this tensor."""
    states = len(losses)
    best, bytes_of = np.full(states, np.inf), np.zeros(states, np.int64)
    chosen = np.zeros(states, np.int16)
    for place, (cost, extra, loss) in enumerate(zip(costs, extras, own, strict=True)):
        if cost >= states:
            continue
        total = losses[: states - cost] + loss
        better = np.flatnonzero(total < best[cost:])
        best[cost + better] = total[better]
        bytes_of[cost + better] = used[better] + extra
        chosen[cost + better] = place
    return best, bytes_of, chosen
