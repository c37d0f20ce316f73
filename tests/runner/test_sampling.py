"""Sampling steps against the definitions of their papers and of llama.cpp's documentation, written plainly here."""

from __future__ import annotations

import numpy as np
import pytest

from quantcli.core.errors import GenerationError, UsageError
from quantcli.runner.text.sampling import (
    Candidates,
    Sampler,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalize,
    probabilities,
)
from quantcli.runner.text.sampling_options import SamplingOptions


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


@pytest.mark.parametrize("seed", range(30))
def test_typical_keeps_the_least_surprising_about_surprise(seed):
    logits = logits_of(seed)
    chances = probabilities(np.sort(logits.astype(np.float64))[::-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(chances)
        distance = np.abs(surprise - np.nansum(chances * surprise))
    for p in (0.01, 0.3, 0.77, 0.99):
        kept = len(keep_typical(ranked(logits), p).ids)
        nearest = np.sort(distance)[:kept]
        chosen = [place for place in range(len(logits)) if distance[place] <= nearest[-1]]
        assert len(chosen) >= kept >= 1
        if len(chosen) == kept:  # no ties: which of equals are kept is not said
            assert keep_typical(ranked(logits), p).ids.tolist() == ranked(logits).ids[chosen].tolist()
            assert chances[chosen].sum() > p - 1e-9 or kept == len(logits)
    assert len(keep_typical(ranked(logits), 1).ids) == len(logits)


def test_probabilities_of_huge_logits_are_finite_and_sum_to_one():
    result = probabilities(np.array([1e30, 1e30, -1e30]))
    assert result.tolist() == [0.5, 0.5, 0.0]


def test_penalties_lower_what_is_recent():
    logits = np.array([4, -4, 2, 0], np.float32)
    assert penalize(logits, [0, 0, 1], SamplingOptions(repeat_penalty=2)).tolist() == [2, -8, 2, 0]
    assert penalize(logits, [0, 0, 1], SamplingOptions(presence_penalty=1)).tolist() == [3, -5, 2, 0]
    assert penalize(logits, [0, 0, 1], SamplingOptions(frequency_penalty=1)).tolist() == [2, -5, 2, 0]
    every = SamplingOptions(repeat_penalty=2, presence_penalty=0.5, frequency_penalty=1)
    assert penalize(logits, [0, 0, 1], every).tolist() == [-0.5, -9.5, 2, 0]
    assert logits.tolist() == [4, -4, 2, 0]


def test_greedy_takes_the_largest_and_ignores_every_filter():
    logits = np.array([0, 3, 2.9], np.float32)
    sampler = Sampler(SamplingOptions(temperature=0, top_k=1, top_p=0.1, min_p=1))
    assert sampler.choose(logits, []) == 1
    assert Sampler(SamplingOptions(temperature=0, repeat_penalty=2)).choose(logits, [1]) == 2


def test_only_recent_tokens_are_penalized():
    logits = np.array([3, 2], np.float32)
    for count, chosen in ((2, 0), (3, 1), (-1, 1), (0, 0)):
        sampler = Sampler(SamplingOptions(temperature=0, frequency_penalty=1.2, repeat_last_n=count))
        assert sampler.choose(logits, [0, 0, 1]) == chosen, count


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
        ("top_p", 1.1), ("min_p", -0.1), ("min_p", 2), ("typical_p", 0), ("repeat_penalty", 0),
        ("presence_penalty", float("nan")), ("frequency_penalty", float("inf")), ("repeat_last_n", -2), ("seed", -1),
    ],
)  # fmt: skip
def test_options_without_a_meaning_are_refused_by_name(option, value):
    with pytest.raises(UsageError, match=option.replace("_", "[- ]")):
        SamplingOptions(**{option: value})


@pytest.fixture(scope="module")
def reference():
    """The candidates llama.cpp's own sampler leaves of logits, after its history of tokens: `{id: logit}`."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the reference implementation is not installed")

    def apply(sampler, logits, history=()):
        for token in history:
            llama_cpp.llama_sampler_accept(sampler, token)
        data = (llama_cpp.llama_token_data * len(logits))(*((i, float(logit), 0) for i, logit in enumerate(logits)))
        candidates = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
        llama_cpp.llama_sampler_apply(sampler, candidates)
        left = {candidates.data[i].id: candidates.data[i].logit for i in range(candidates.size)}
        llama_cpp.llama_sampler_free(sampler)
        return left

    return llama_cpp, apply


@pytest.mark.parametrize("seed", range(10))
def test_steps_leave_what_the_reference_leaves(seed, reference):
    llama_cpp, apply = reference
    random = np.random.default_rng(seed)
    logits = (random.normal(size=200) * 3).astype(np.float32)  # no two alike
    p = float(random.uniform(0.05, 0.95))
    history = random.integers(200, size=90).tolist()
    for sampler, kept in (
        (llama_cpp.llama_sampler_init_top_k(17), keep_top_k(logits, 17)),
        (llama_cpp.llama_sampler_init_typical(p, 1), keep_typical(ranked(logits), p)),
        (llama_cpp.llama_sampler_init_top_p(p, 1), keep_top_p(ranked(logits), p)),
        (llama_cpp.llama_sampler_init_min_p(p / 10, 1), keep_min_p(ranked(logits), p / 10)),
    ):
        assert apply(sampler, logits) == dict(zip(kept.ids.tolist(), kept.logits.tolist(), strict=True))
    options = SamplingOptions(repeat_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.4, repeat_last_n=64)
    sampler = llama_cpp.llama_sampler_init_penalties(200, 64, 1.3, 0.2, 0.4)
    penalized = apply(sampler, logits, history)
    expected = [penalized[id_] for id_ in range(200)]
    np.testing.assert_allclose(penalize(logits, history[-64:], options), expected, rtol=1e-6, atol=1e-6)


LARGE = [
    {"temperature": 1e-320}, {"temperature": 1e-10}, {"temperature": 1e308}, {"presence_penalty": -1e39},
    {"presence_penalty": 1e308, "frequency_penalty": 1e308}, {"presence_penalty": 1e39, "frequency_penalty": -1e39},
    {"repeat_penalty": 1e-50}, {"repeat_penalty": 1e39}, {"repeat_penalty": 5e-324, "frequency_penalty": -1e300},
    {"frequency_penalty": 1e300}, {"min_p": 5e-324}, {"top_p": 5e-324}, {"typical_p": 5e-324, "temperature": 1e-320},
    {"top_k": 10**30, "repeat_last_n": 10**30, "seed": 10**30},
]  # fmt: skip


@pytest.mark.parametrize("options", LARGE, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e38])
@pytest.mark.parametrize("temperature", [0.0, None])
def test_settings_beyond_what_numbers_hold_still_choose(options, scale, temperature):
    # NumPy's warnings are errors here.
    logits = (np.array([0.5, 2.0, -1.0, -3.0, 0.0, -np.inf]) * scale).astype(np.float32)
    settings = {"seed": 1, **options} if temperature is None else {**options, "temperature": temperature}
    sampler = Sampler(SamplingOptions(**settings))
    for history in ([], [1], [1, 1, 2, 4, 5]):
        assert sampler.choose(logits, history) in range(5)


def test_a_temperature_too_small_to_divide_by_takes_the_likeliest():
    logits = np.array([0.5, 2.0, 1.999, -3.0], np.float32)
    for temperature in (1e-10, 1e-300, 5e-324):
        assert Sampler(SamplingOptions(temperature=temperature)).choose(logits, []) == 1
