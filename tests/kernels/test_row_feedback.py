"""Rounding with error feedback between rows, too: the factor against NumPy's linear algebra, and the loss."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from test_feedback import random_moment, random_rows, rounded

from quantcli.core.block_types import TYPES
from quantcli.kernels.rounding.moment_factor import factorize
from quantcli.kernels.rounding.row_feedback import RowFactor, factorize_rows, quantize_two_sided
from quantcli.kernels.rounding.stretch import GOOD
from quantcli.kernels.rows import dequantize

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
DAMPING = 0.01


def damped(moment: Floats) -> Doubles:
    return moment + DAMPING * np.diagonal(moment).mean(dtype=np.float64) * np.eye(len(moment))


def blocks_of(factor: RowFactor) -> list[slice]:
    return [slice(first, first + factor.block) for first in range(0, len(factor.upper), factor.block)]


@pytest.mark.parametrize(("rows", "block"), [(64, 32), (320, 32), (1056, 64)])
def test_the_factor_leaves_nothing_between_blocks(rows: int, block: int) -> None:
    """G = (I + V)^T B (I + V), with B block diagonal."""
    moment = random_moment(rows)
    factor = factorize_rows(np.triu(moment), DAMPING)
    assert factor.block == block
    assert sorted(factor.order) == list(range(rows))
    lower = np.eye(rows)
    for own in blocks_of(factor):
        lower[own, : own.start] = factor.upper[: own.start, own].T
    inverse = np.linalg.inv(lower)
    between = inverse.T @ damped(moment)[np.ix_(factor.order, factor.order)] @ inverse
    for own in blocks_of(factor):
        between[own, own] = 0
    assert np.abs(between).max() < 1e-5 * np.abs(moment).max()


def two_sided(x: Floats, kind: str, moment: Floats, rows: Floats) -> NDArray[np.uint8]:
    data = np.zeros((len(x), TYPES[kind].row_bytes(x.shape[1])), np.uint8)
    factor, row_factor = factorize(moment, DAMPING), factorize_rows(rows, DAMPING)
    quantize_two_sided(x, TYPES[kind], factor, row_factor, GOOD, data)
    return data


def loss(x: Floats, data: NDArray[np.uint8], kind: str, moment: Floats, rows: Floats) -> float:
    errors = x.astype(np.float64) - dequantize(data, kind)
    return float(np.sum((rows @ errors) * (errors @ moment)))


@pytest.mark.parametrize("kind", ["Q2_K", "Q4_K", "Q8_0", "IQ2_XXS"])
def test_the_loss_of_a_matrix_is_less_than_with_feedback_between_columns_only(kind: str) -> None:
    x, moment, rows = random_rows(160, 256), random_moment(256), random_moment(160, seed=3)
    one = rounded(x, TYPES[kind], factorize(moment, DAMPING), GOOD)
    assert loss(x, two_sided(x, kind, moment, rows), kind, moment, rows) < 0.8 * loss(x, one, kind, moment, rows)


def test_rows_whose_gradients_are_independent_get_no_feedback() -> None:
    x, moment = random_rows(96, 256), random_moment(256)
    rows = np.diag(np.random.default_rng(1).random(96).astype(np.float32) + 0.5)
    one = rounded(x, TYPES["Q4_K"], factorize(moment, DAMPING), GOOD)
    np.testing.assert_array_equal(two_sided(x, "Q4_K", moment, rows), one)
