"""The vector functions that the block quantizers rest on, lane by lane against NumPy and plain Python."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from quantcli.kernels.rounding.block_lanes import mean_squares, transpose, transpose_back
from quantcli.kernels.rounding.scale_search import finite_inverse, nearest_int
from quantcli.kernels.simd import (
    LANES,
    bits_mask,
    byte_table,
    first_lane,
    load,
    load_scalar,
    mask_bits,
    max_lanes,
    min_lanes,
    round_away,
    select,
    staircase,
    store,
    store_scalar,
)

compiled = numba.njit(error_model="numpy")  # not `kernel`, whose cache would not notice an edited test
WIDTH = 32
TABLE = (-128, -7, 0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 100, 120, 127)
look_up = byte_table(*TABLE)
BOUNDS, STEPS = (-2.5, 0.0, 1.0, 100.0), (-3.0, -1.0, 0.5, 7.0, 8.0)
climb = staircase(BOUNDS, STEPS)


def _floats(*values: float) -> NDArray[np.float32]:
    return np.resize(np.array(values, np.float32), WIDTH)


def test_halves_round_away_from_zero() -> None:
    @compiled
    def run(x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        store(out, 0, round_away(load(x, 0, WIDTH)))

    below = np.nextafter(np.float32(0.5), np.float32(0))
    x = _floats(0.5, -0.5, 1.5, 2.5, -2.5, below, -below, 0.49, 126.5, 8388607.5, 8388609.0, 1e30, 0.0, -0.0, 3.0, -3.2)
    out = np.empty(WIDTH, np.float32)
    run(x, out)
    expected = np.copysign(np.floor(np.abs(x.astype(np.float64)) + 0.5), x)
    np.testing.assert_array_equal(out, expected.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(out), np.signbit(x))


def test_masks_become_bits_and_back_and_know_their_first_lane() -> None:
    @compiled
    def run(x: NDArray[np.float32], limit: np.float32, packed: NDArray[np.uint8], out: NDArray[np.float32]) -> int:
        value = load(x, 0, WIDTH)
        store_scalar(packed, 1, mask_bits(value > limit))
        mask = bits_mask(load_scalar(packed, 1, np.uint32))
        store(out, 0, select(mask, value, value - value))
        return first_lane(mask)

    x = np.arange(WIDTH, dtype=np.float32)
    for limit in (-1.0, 0.0, 16.0, 30.0, 31.0):
        packed, out = np.zeros(6, np.uint8), np.empty(WIDTH, np.float32)
        first = run(x, np.float32(limit), packed, out)
        assert packed.tobytes() == b"\0" + sum(1 << i for i in range(WIDTH) if i > limit).to_bytes(4, "little") + b"\0"
        np.testing.assert_array_equal(out, np.where(x > limit, x, 0))
        assert first == min(int(limit) + 1, WIDTH)


def test_the_extreme_lanes() -> None:
    @compiled
    def run(x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        out[0], out[1] = max_lanes(load(x, 0, WIDTH)), min_lanes(load(x, 0, WIDTH))

    for seed in range(20):
        x, out = np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32), np.empty(2, np.float32)
        run(x, out)
        assert out.tolist() == [x.max(), x.min()]


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_bytes_are_looked_up_in_a_table(width: int) -> None:
    @compiled
    def run(codes: NDArray[np.uint8], out: NDArray[np.int8]) -> None:
        store(out, 0, look_up(load(codes, 0, width)))

    codes = np.random.default_rng(width).integers(0, 16, width, np.uint8)
    out = np.empty(width, np.int8)
    run(codes, out)
    np.testing.assert_array_equal(out, np.array(TABLE)[codes])


def test_a_staircase_steps_up_at_its_bounds_and_ends_at_the_top_for_nan() -> None:
    @compiled
    def run(x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        store(out, 0, climb(load(x, 0, WIDTH)))

    x = _floats(-np.inf, -3, -2.5, -2.4, -0.0, 0, 0.99, 1, 99.9, 100, 1e30, np.inf, np.nan)
    out = np.empty(WIDTH, np.float32)
    run(x, out)
    expected = [STEPS[sum(not value < bound for bound in BOUNDS)] for value in x]
    np.testing.assert_array_equal(out, np.array(expected, np.float32))


@pytest.mark.parametrize("length", [16, 32, 256])
def test_blocks_go_into_lanes_and_back(length: int) -> None:
    @compiled
    def run(
        source: NDArray[np.float32], starts: NDArray[np.intp], out: NDArray[np.float32], back: NDArray[np.float32]
    ) -> None:
        transpose(source, starts, length, out)
        transpose_back(out, length, back)

    random = np.random.default_rng(length)
    source = random.standard_normal(40 * length).astype(np.float32)
    starts = random.integers(0, source.size - length, LANES)
    out, back = np.empty(LANES * length, np.float32), np.empty(LANES * length, np.float32)
    run(source, starts, out, back)
    blocks = np.stack([source[start : start + length] for start in starts])
    np.testing.assert_array_equal(out, blocks.T.ravel())
    np.testing.assert_array_equal(back, blocks.ravel())


@pytest.mark.parametrize("rows", [1, 7, 16, 33])
def test_mean_squares_are_summed_in_order(rows: int) -> None:
    @compiled
    def run(x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        mean_squares(x.reshape(-1), len(x), 160, out)

    x, out = np.random.default_rng(rows).standard_normal((rows, 160)).astype(np.float32), np.empty(rows + LANES, np.float32)
    run(x, out)
    total = np.zeros(rows, np.float32)
    for column in x.T:
        total += column * column
    np.testing.assert_array_equal(out[:rows], total / np.float32(160))


def test_an_infinite_inverse_counts_as_zero() -> None:
    @compiled
    def run(x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        for i in range(x.size):
            out[i] = finite_inverse(x[i])

    x, out = np.array([2.0, -0.5, 0.0, -0.0, 1e-45, -1e-40, 1e-38], np.float32), np.empty(7, np.float32)
    run(x, out)
    np.testing.assert_array_equal(out[:6], [0.5, -2.0, 0, 0, 0, 0])
    assert out[6] == np.float32(1) / x[6]


def test_nearest_int_reads_the_rounded_integer_from_the_bits() -> None:
    @compiled
    def run(x: NDArray[np.float32], out: NDArray[np.int32]) -> None:
        store(out, 0, nearest_int(load(x, 0, WIDTH)))

    x = _floats(0.5, 1.5, -2.5, 3.49, -0.5, 4194303.0, -4194303.0, 5e6, -7e9, np.inf, -np.inf, 12345.678)
    out = np.empty(WIDTH, np.int32)
    run(x, out)
    bits = (x + np.float32(12582912)).view(np.int32)
    np.testing.assert_array_equal(out, (bits & 0x7FFFFF) - 0x400000)
    np.testing.assert_array_equal(out[:7], np.rint(x[:7]))
