"""What is common to all types in rounding with error feedback: stretches of columns, and how errors reach later columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.simd import LANES, grid_operations, load, select, store

STRETCH: Final = 256
"""Columns that are rounded together. Their errors then reach all later columns by one matrix product."""

_AHEAD: Final = 8
"""Columns that receive errors at once."""

_ahead = grid_operations(1, _AHEAD, LANES)
_read_ahead, _write_ahead, _add_ahead = _ahead.read, _ahead.write, _ahead.add_outer


@dataclass(frozen=True)
class Effort:
    """How much rounding with error feedback tries.

    scales   how many super-block scales are tried around the one that the fit gives; odd
    sweeps   how often coordinate descent on the codes, or the points of a lattice, follows
    """

    scales: int = 1
    sweeps: int = 0


GOOD: Final = Effort(1, 1)
BEST: Final = Effort(5, 2)


@inline_once
def feed(values: Any, errors: Any, near: Any, first: Any, last: Any, after: Any, end: Any) -> None:
    """Add to columns `after` to `end` of a stretch what the errors of columns `first` to `last` contribute."""
    for k in range(after, end, _AHEAD):
        total = _read_ahead(values, k * LANES, LANES)
        for i in range(first, last):
            total = _add_ahead(total, errors, i * LANES, near, k * STRETCH + i, STRETCH)
        _write_ahead(total, values, k * LANES, LANES)


@inline
def keep(better: Any, new: Any, kept: Any, first: Any, stop: Any) -> None:
    """Copy the vectors `first` to `stop` of an array, in the lanes that are better."""
    for number in range(first, stop):
        place = number * LANES
        store(kept, place, select(better, load(new, place, LANES), load(kept, place, LANES)))
