"""The vector search for the nearest codebook point against the definition, one float32 operation at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from quantcli.kernels.blocks.codebooks import LATTICES, neighbours
from quantcli.kernels.blocks.i_lattice import EVEN_SIGNS
from quantcli.kernels.blocks.lattice_search import lookup_tables, nearest
from quantcli.kernels.simd import LANES, load, lookup, store

compiled = numba.njit(error_model="numpy")  # not `kernel`, whose cache would not notice an edited test


@compiled
def found(x: Any, weight: Any, lane: int, bits: int, scale: Any, tables: Any, code: int) -> Any:
    return nearest(x, weight, lane, bits, scale * load(tables.levels, 0, LANES), tables, code)


@compiled
def looked_up(table: Any, index: Any, out: Any) -> None:
    store(out, 0, lookup(load(table, 0, LANES), load(index, 0, LANES)))


def by_definition(name: str, x: NDArray[np.float32], weight: NDArray[np.float32], scale: np.float32, code: int) -> int:
    lattice, near = LATTICES[name], neighbours(name)
    candidates = near.candidates[near.starts[code] : near.starts[code + 1]]
    errors = []
    for candidate in candidates.tolist():
        error = np.float32(0)
        for dimension in range(lattice.dimensions):
            level = candidate >> (lattice.bits * dimension) & ((1 << lattice.bits) - 1)
            difference = scale * np.float32(2 * level + 1) - x[dimension]
            error += weight[dimension] * difference * difference
        errors.append(error)
    return int(candidates[int(np.argmin(errors))])


def spread_out(values: NDArray[np.float32], lane: int) -> NDArray[np.float32]:
    """The values in one lane, transposed, and NaN in the others, which the search must not read."""
    array = np.full((len(values), LANES), np.nan, np.float32)
    array[:, lane] = values
    return array.reshape(-1)


@pytest.mark.parametrize("name", LATTICES)
@pytest.mark.parametrize("make_weight", [np.ones, np.random.default_rng(3).random])
def test_nearest(name: str, make_weight: Callable[[int], NDArray[Any]]) -> None:
    """With equal weights and points halfway between levels many candidates tie: the first one wins."""
    lattice, random = LATTICES[name], np.random.default_rng(4)
    shifts = lattice.bits * np.arange(lattice.dimensions)
    for trial in range(200):
        levels = random.integers(0, len(lattice.values), lattice.dimensions)
        x = (2 * levels + random.integers(-1, 4, lattice.dimensions) / 2).astype(np.float32)
        weight = make_weight(lattice.dimensions).astype(np.float32)
        scale, code, lane = np.float32(random.choice([0.5, 0.75, 1.0, 1.1])), int((levels << shifts).sum()), trial % LANES
        ours = found(
            spread_out(x, lane), spread_out(weight, lane), lane, lattice.bits, scale, lookup_tables(name), code
        )
        assert ours == by_definition(name, x, weight, scale, code)


def test_lookup_disregards_the_higher_bits_of_an_index() -> None:
    random = np.random.default_rng(6)
    table, out = random.random(LANES).astype(np.float32), np.empty(LANES, np.float32)
    for _ in range(20):
        index = random.integers(0, 1 << 16, LANES).astype(np.int32)
        looked_up(table, index, out)
        np.testing.assert_array_equal(out, table[index % LANES])


def test_even_signs() -> None:
    np.testing.assert_array_equal(EVEN_SIGNS & 127, np.arange(128))
    assert {int(value).bit_count() % 2 for value in EVEN_SIGNS} == {0}
