"""Losses, likeliest tokens and divergences against their definitions in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quantcli.kernels.scoring import NEGLIGIBLE, compare, entropy, score

Doubles = NDArray[np.float64]


def log_softmax(logits: NDArray[np.float32]) -> Doubles:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def scored(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> tuple[Doubles, NDArray[np.int32]]:
    losses, tops = np.empty(len(logits)), np.empty(len(logits), np.int32)
    score(logits, targets, losses, tops)
    return losses, tops


def compared(
    logits: NDArray[np.float32], base: NDArray[np.float32], targets: NDArray[np.int64]
) -> tuple[Doubles, NDArray[np.int32], Doubles]:
    losses, tops, divergences = np.empty((2, len(logits))), np.empty((2, len(logits)), np.int32), np.empty(len(logits))
    compare(logits, base, targets, losses, tops, divergences)
    return losses, tops, divergences


def entropies_of(logits: NDArray[np.float32]) -> Doubles:
    found = np.empty(len(logits))
    entropy(logits, found)
    return found


@pytest.mark.parametrize("vocabulary", [1, 7, 16, 33, 5000])
@pytest.mark.parametrize("spread", [0.01, 5, 60])
def test_scores_are_those_of_their_definitions(vocabulary: int, spread: float) -> None:
    random = np.random.default_rng(vocabulary)
    logits, base = (random.standard_normal((2, 9, vocabulary)) * spread).astype(np.float32)
    targets = random.integers(0, vocabulary, 9)
    found, expected = log_softmax(logits), log_softmax(base)
    losses, tops, divergences = compared(logits, base, targets)
    rows = np.arange(9)
    for row, exact, values in ((0, found, logits), (1, expected, base)):
        np.testing.assert_allclose(losses[row], -exact[rows, targets], rtol=1e-5, atol=2e-6)
        np.testing.assert_array_equal(tops[row], values.argmax(axis=1))
    counted = expected > NEGLIGIBLE
    terms = np.where(counted, np.exp(expected) * (expected - found), 0)
    np.testing.assert_allclose(divergences, terms.sum(1), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(entropies_of(base), -(np.exp(expected) * expected).sum(1), rtol=1e-5, atol=2e-6)
    alone = scored(logits, targets)
    np.testing.assert_array_equal(alone[0], losses[0])
    np.testing.assert_array_equal(alone[1], tops[0])


def test_entropies_range_from_none_to_that_of_equal_chances() -> None:
    logits = np.zeros((4, 37), np.float32)
    logits[1, :] = -np.inf
    logits[1, 20] = 3
    logits[2, [0, 36]] = 1000
    logits[3, 36] = np.nan
    np.testing.assert_allclose(entropies_of(logits), [np.log(37), 0, np.log(2), np.nan], atol=1e-12)


def test_the_first_of_equal_logits_is_the_top() -> None:
    logits = np.zeros((3, 40), np.float32)
    logits[1, [17, 18, 39]] = logits[2, [38, 39]] = 1
    assert scored(logits, np.zeros(3, np.int64))[1].tolist() == [0, 17, 38]


def test_a_divergence_is_infinite_where_only_the_other_rules_a_token_out() -> None:
    random = np.random.default_rng(1)
    logits, base = random.standard_normal((2, 4, 19)).astype(np.float32)
    # What the base rules out does not count, whatever is made of it.
    base[0, 3] = logits[0, 3] = base[1, 18] = logits[2, 18] = -np.inf
    logits[3, 5] = -np.inf
    divergences = compared(logits, base, np.zeros(4, np.int64))[2]
    assert np.isfinite(divergences[:2]).all()
    assert (divergences[2:] == np.inf).all()


@pytest.mark.parametrize("place", [2, 18])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_no_number_leaves_no_finite_loss(value: float, place: int) -> None:
    logits = np.zeros((2, 19), np.float32)
    logits[1, place] = value
    losses, _ = scored(logits, np.array([1, 1]))
    assert np.isfinite(losses).tolist() == [True, False]
