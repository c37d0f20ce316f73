"""Statistics of scored predictions against the sums of llama.cpp's `tools/perplexity/perplexity.cpp`, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from quantcli.quality.statistics import Estimate, Scores, joined, mean


def mean_and_uncertainty(total: float, squares: float, count: int) -> tuple[float, float]:
    """As there, from a sum and a sum of squares."""
    middle = total / count
    return middle, math.sqrt((squares / count - middle * middle) / (count - 1))


@pytest.fixture
def scores() -> Scores:
    random = np.random.default_rng(5)
    base = random.exponential(2, 997)
    losses, divergences = base + random.normal(0, 0.1, 997), random.exponential(0.05, 997)
    return Scores(losses, base, divergences, random.random(997) < 0.9, random.exponential(3, 997))


def test_statistics_are_those_of_the_reference(scores: Scores) -> None:
    assert scores.base_losses is not None and scores.divergences is not None and scores.same_top is not None
    found, n = scores.evaluation(7), 997
    assert (found.tokens, found.chunks) == (n, 7)
    assert found.divergence is not None
    ours, theirs, kld = scores.losses, scores.base_losses, scores.divergences
    loss, error = mean_and_uncertainty(ours.sum(), (ours**2).sum(), n)
    base_loss, base_error = mean_and_uncertainty(theirs.sum(), (theirs**2).sum(), n)
    assert (found.perplexity, found.stderr) == pytest.approx((math.exp(loss), math.exp(loss) * error))
    beside = found.divergence
    assert (beside.base_perplexity, beside.base_stderr) == pytest.approx(
        (math.exp(base_loss), math.exp(base_loss) * base_error)
    )
    # There, from the covariance of both losses.
    covariance = ((ours * theirs).sum() / n - loss * base_loss) / (n - 1)
    ratio_error = math.sqrt(error**2 + base_error**2 - 2 * covariance)
    assert (beside.log_ratio.value, beside.log_ratio.stderr) == pytest.approx((loss - base_loss, ratio_error))
    assert (beside.mean, beside.stderr) == pytest.approx(mean_and_uncertainty(kld.sum(), (kld**2).sum(), n))
    change = np.exp(-ours) - np.exp(-theirs)
    square, square_error = mean_and_uncertainty((change**2).sum(), (change**4).sum(), n)
    expected = (math.sqrt(square), 0.5 / math.sqrt(square) * square_error)
    assert (beside.rms_change.value, beside.rms_change.stderr) == pytest.approx(expected)
    same = scores.same_top.sum() / n
    assert (beside.same_top, beside.same_top_stderr) == pytest.approx((same, math.sqrt(same * (1 - same) / (n - 1))))
    ordered = np.sort(kld)
    assert (beside.median, beside.max) == (ordered[498], ordered[-1])
    for value, fraction in ((beside.p99, 0.99), (beside.p999, 0.999)):
        place = fraction * (n - 1)
        below, part = int(place), place - int(place)
        assert value == pytest.approx((1 - part) * ordered[below] + part * ordered[below + 1])


def test_a_difference_is_paired(scores: Scores) -> None:
    assert scores.divergences is not None
    other = Scores(scores.losses + 0.01, scores.base_losses, scores.divergences * 1.5, scores.same_top)
    found = scores.difference(other)
    # A constant shift has no error, however much the losses vary.
    assert found.log_perplexity.value == pytest.approx(0.01)
    assert found.log_perplexity.stderr < 1e-12
    assert found.divergence is not None
    assert found.divergence.value == pytest.approx(0.5 * scores.divergences.mean())
    assert found.divergence.stderr == pytest.approx(0.5 * scores.divergences.std() / math.sqrt(996))
    assert Scores(scores.losses).difference(Scores(other.losses)).divergence is None


def test_an_interval_holds_the_truth_in_19_of_20_cases() -> None:
    samples = np.random.default_rng(1).exponential(1, (4000, 400))
    intervals = [mean(row).interval for row in samples]
    assert sum(low <= 1 <= high for low, high in intervals) / len(intervals) == pytest.approx(0.95, abs=0.012)


def test_equal_predictions_have_no_error() -> None:
    losses = np.array([1.0, 2.0])
    found = Scores(losses, losses, np.zeros(2), np.ones(2, bool)).evaluation(1).divergence
    assert found is not None
    assert found.rms_change == found.log_ratio == Estimate(0, 0)
    assert (found.same_top, found.same_top_stderr) == (1, 0)
    assert Scores(losses[:1]).evaluation(1).stderr == 0


def test_a_ratio_to_the_entropy_has_the_error_of_resampled_positions(scores: Scores) -> None:
    assert scores.divergences is not None and scores.base_entropies is not None
    found = scores.evaluation(1).divergence
    assert found is not None and found.base_entropy is not None and found.relative is not None
    assert found.base_entropy.value == pytest.approx(scores.base_entropies.mean())
    assert found.relative.value == pytest.approx(scores.divergences.mean() / scores.base_entropies.mean())
    random = np.random.default_rng(2)
    picks = random.integers(0, 997, (2000, 997))
    ratios = scores.divergences[picks].mean(1) / scores.base_entropies[picks].mean(1)
    assert found.relative.stderr == pytest.approx(ratios.std(), rel=0.06)
    certain = replace(scores, base_entropies=np.zeros(997)).evaluation(1).divergence
    assert certain is not None and certain.relative == Estimate(0, 0)
    unmeasured = replace(scores, base_entropies=None).evaluation(1).divergence
    assert unmeasured is not None and unmeasured.base_entropy is None and unmeasured.relative is None


def test_parts_are_joined_in_order(scores: Scores) -> None:
    def part(start: int, stop: int) -> Scores:
        places = np.arange(997)
        return scores.part((start <= places) & (places < stop))

    whole = joined([part(0, 3), part(3, 500), part(500, 997)])
    for name, column in vars(scores).items():
        np.testing.assert_array_equal(getattr(whole, name), column)
    assert joined([Scores(scores.losses), Scores(scores.losses)]).divergences is None
