"""Sampling steps against the definitions of their papers and of llama.cpp's documentation, written plainly here."""

from __future__ import annotations

import numpy as np
import pytest

from quantcli.formats.errors import GenerationError, UsageError
from quantcli.runner.sampling import (
    Candidates,
    Sampler,
    SamplingOptions,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize,
    probabilities,
)


def logits_of(seed: int) -> np.ndarray:
    """Up to 40 logits of all sizes, some of them equal."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 41))
    return np.round(random.normal(size=count) * 10.0 ** random.uniform(-1, 1.5), 1).astype(np.float32)


def ranked(logits: np.ndarray) -> Candidates:
    return keep_top_k(logits, 0)


@pytest.mark.parametrize("seed", range(30))
def test_top_k_keeps_the_largest_first_and_the_lower_id_of_equals(seed):
    logits = logits_of(seed)
    for k in (0, 1, 2, len(logits) // 2, len(logits), 50):
        expected = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[: k or None]
        kept = keep_top_k(logits, k)
        assert kept.ids.tolist() == expected
        assert kept.logits.tolist() == logits[expected].tolist()


@pytest.mark.parametrize("seed", range(30))
def test_top_p_keeps_the_shortest_run_that_reaches_the_probability(seed):
    logits = logits_of(seed)
    chances = probabilities(np.sort(logits.astype(np.float64))[::-1])
    for p in (0.01, 0.3, 0.77, 0.99):
        count = len(keep_top_p(ranked(logits), p).ids)
        assert count >= 1
        assert chances[: count - 1].sum() < p + 1e-9
        assert count == len(logits) or chances[:count].sum() > p - 1e-9
    assert len(keep_top_p(ranked(logits), 1).ids) == len(logits)


@pytest.mark.parametrize("seed", range(30))
def test_min_p_keeps_what_is_likely_enough_beside_the_first(seed):
    logits = logits_of(seed)
    shares = np.exp(np.sort(logits.astype(np.float64))[::-1] - float(logits.max()))
    for p in (0.001, 0.1, 0.5, 1):
        kept = keep_min_p(ranked(logits), p)
        assert (shares[: len(kept.ids)] >= p * (1 - 1e-5)).all()
        assert (shares[len(kept.ids) :] <= p * (1 + 1e-5)).all()


def test_probabilities_of_huge_logits_are_finite_and_sum_to_one():
    result = probabilities(np.array([1e30, 1e30, -1e30]))
    assert result.tolist() == [0.5, 0.5, 0.0]


def test_repeat_penalty_divides_positive_and_multiplies_negative_logits_once():
    logits = np.array([4, -4, 2, 0], np.float32)
    assert penalize(logits, [0, 0, 1], 2.0).tolist() == [2, -8, 2, 0]
    assert logits.tolist() == [4, -4, 2, 0]


def test_greedy_takes_the_largest_and_ignores_every_filter():
    logits = np.array([0, 3, 2.9], np.float32)
    sampler = Sampler(SamplingOptions(temperature=0, top_k=1, top_p=0.1, min_p=1))
    assert sampler.choose(logits, []) == 1
    assert Sampler(SamplingOptions(temperature=0, repeat_penalty=2)).choose(logits, [1]) == 2


def test_only_recent_tokens_are_penalized():
    logits = np.array([3, 2], np.float32)
    sampler = Sampler(SamplingOptions(temperature=0, repeat_penalty=9, penalty_window=2))
    assert sampler.choose(logits, [0, 1, 1]) == 0


def test_a_seed_repeats_its_choices_and_draws_follow_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    options = SamplingOptions(temperature=1, top_k=0, top_p=1, min_p=0, seed=7)
    first, second = Sampler(options), Sampler(options)
    drawn = [first.choose(logits, []) for _ in range(3000)]
    assert drawn == [second.choose(logits, []) for _ in range(3000)]
    shares = np.bincount(drawn, minlength=3) / 3000
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.04)


def test_a_low_temperature_sharpens():
    logits = np.array([1, 0], np.float32)
    options = {"top_k": 0, "top_p": 1, "min_p": 0, "seed": 1}
    cold, hot = Sampler(SamplingOptions(temperature=0.1, **options)), Sampler(SamplingOptions(temperature=10, **options))
    assert sum(cold.choose(logits, []) for _ in range(500)) == 0
    assert 150 < sum(hot.choose(logits, []) for _ in range(500)) < 300


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_end_the_generation_with_one_line(bad):
    with pytest.raises(GenerationError, match="not a number"):
        Sampler(SamplingOptions(temperature=0)).choose(np.array([1, bad], np.float32), [])


def test_tokens_ruled_out_by_minus_infinity_are_fine():
    logits = np.array([-np.inf, 1], np.float32)
    assert Sampler(SamplingOptions(seed=1)).choose(logits, []) == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -1), ("temperature", float("nan")), ("temperature", float("inf")), ("top_k", -1), ("top_p", 0),
        ("top_p", 1.1), ("min_p", -0.1), ("min_p", 2), ("repeat_penalty", 0), ("seed", -1),
    ],
)  # fmt: skip
def test_options_without_a_meaning_are_refused_by_name(option, value):
    with pytest.raises(UsageError, match=option.replace("_", "[- ]")):
        SamplingOptions(**{option: value})
