"""Nearest-neighbour search in a codebook, which the lattice quantizers run thousands of times per super-block.

Here the candidates are in the vector lanes. At a given scale, a dimension has one possible error per level of the lattice,
three or eight, which fit in one register as a lookup table. The error of a candidate is a sum of looked-up errors, added in
the order of the dimensions as in llama.cpp.

Source: `iq2_find_best_neighbour`, `iq3_find_best_neighbour` and `iq1_find_best_neighbour2` in `ggml-quants.c`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.blocks.codebooks import LATTICES, neighbours
from quantcli.kernels.jit import inline, inline_once
from quantcli.kernels.shorthand import F32, I32, Scratch, Vec
from quantcli.kernels.simd import LANES, address, convert, first_lane, load, lookup, min_lanes, select, splat

FARTHEST: Final = np.finfo(np.float32).max
"""`FLT_MAX`: an error that no candidate has to beat."""

LANE_NUMBERS: Final = np.arange(LANES, dtype=np.int32)


class Lookup(NamedTuple):
    """The tables of a codebook for the quantizers: its `Neighbours`, with the candidates padded by `LANES`, and the values
    1, 3, ... of the levels, float32, repeated to fill a vector."""

    starts: NDArray[np.int32]
    candidates: NDArray[np.uint16]
    indices: NDArray[np.int16]
    levels: NDArray[np.float32]


@cache
def lookup_tables(name: str) -> Lookup:
    """The tables of a block type."""
    near = neighbours(name)
    cycle = np.arange(LANES) % (1 << LATTICES[name].bits)
    return Lookup(near.starts, np.pad(near.candidates, (0, LANES)), near.index, (2 * cycle + 1).astype(np.float32))


@inline_once
def addresses(tables: Lookup) -> Lookup:
    """The same tables as base addresses."""
    return Lookup(
        address(tables.starts, np.int32),
        address(tables.candidates, np.uint16),
        address(tables.indices, np.int16),
        address(tables.levels, np.float32),
    )


@inline
def _errors(x: Scratch, weight: Scratch, place: int, spaced: Vec) -> tuple[Vec, Vec, Vec, Vec]:
    """The weighted squared errors of all levels, for four consecutive dimensions: weight * (scaled level - x)**2."""
    a = spaced - x[place]
    b = spaced - x[place + LANES]
    c = spaced - x[place + 2 * LANES]
    d = spaced - x[place + 3 * LANES]
    return (
        weight[place] * a * a,
        weight[place + LANES] * b * b,
        weight[place + 2 * LANES] * c * c,
        weight[place + 3 * LANES] * d * d,
    )


@inline
def _summed(total: Vec, errors: tuple[Vec, Vec, Vec, Vec], codes: Vec, bits: int) -> Vec:
    """`total` plus the errors of the lowest four levels of each code. `lookup` ignores higher bits of its index."""
    total = total + lookup(errors[0], codes)
    total = total + lookup(errors[1], codes >> I32(bits))
    total = total + lookup(errors[2], codes >> I32(2 * bits))
    return total + lookup(errors[3], codes >> I32(3 * bits))


@inline
def nearest(x: Scratch, weight: Scratch, place: int, bits: int, spaced: Vec, tables: Lookup, code: int) -> Any:
    """The code (int32) of the best codebook point for the vector at `x[place]`, whose rounded levels have the code `code`.

    It is the first of the candidates for `code` with the smallest weighted squared error, the sum of
    weight * (scaled level - x)**2. `x` and `weight` are transposed: dimension i is at `place + i * LANES`. `spaced` is the
    scaled levels, repeated to fill the vector. A point has eight dimensions of two `bits` or four of three.
    """
    first, last = tables.starts[code], tables.starts[code + 1]
    if last - first == 1:
        return np.int32(tables.candidates[first])
    near = _errors(x, weight, place, spaced)
    far = near
    if bits == 2:
        far = _errors(x, weight, place + 4 * LANES, spaced)
    best = splat(FARTHEST, LANES)
    best_at = splat(I32(first), LANES)
    numbers = load(LANE_NUMBERS, 0, LANES)
    for at in range(first, last, LANES):
        codes = convert(load(tables.candidates, at, LANES), np.int32)
        error = _summed(splat(F32(0), LANES), near, codes, bits)
        if bits == 2:
            error = _summed(error, far, codes >> I32(8), bits)
        better = (error < best) & (numbers < I32(last - at))
        best = select(better, error, best)
        best_at = select(better, splat(I32(at), LANES), best_at)
    winners = best == min_lanes(best)
    winner = first + first_lane(winners)
    if last - first > LANES:
        winner = min_lanes(select(winners, best_at + numbers, splat(I32(last), LANES)))
    return np.int32(tables.candidates[winner])
