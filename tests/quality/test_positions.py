"""Averages over the position in the context."""

from __future__ import annotations

import numpy as np
import pytest

from quantcli.quality.positions import BANDS, by_position, pooled_bands
from quantcli.quality.statistics import Scores, mean


@pytest.mark.parametrize("context", [4, 5, 33, 64, 512])
def test_bands_cut_the_second_half_and_average_it(context: int) -> None:
    length, chunks = context - 1 - context // 2, 7
    # Each loss says its position, and each divergence its chunk.
    losses = np.tile(np.arange(length, dtype=np.float64) + context // 2, chunks)
    divergences = np.repeat(np.arange(chunks, dtype=np.float64), length)
    found = by_position(Scores(losses, losses, divergences, losses > 0), context)
    assert len(found) == min(BANDS, length)
    assert [band.start for band in found] == [context // 2, *(band.stop for band in found[:-1])]
    assert found[-1].stop == context - 1
    for band in found:
        assert band.predictions == chunks * (band.stop - band.start)
        assert band.loss.value == pytest.approx((band.start + band.stop - 1) / 2)
        assert band.divergence is not None
        assert band.divergence.value == pytest.approx(3)
        width = band.stop - band.start
        assert band.divergence.stderr == pytest.approx(mean(np.repeat(np.arange(7.0), width)).stderr)


def test_without_a_base_there_are_losses_only() -> None:
    assert {band.divergence for band in by_position(Scores(np.ones(31)), 64)} == {None}


def test_bands_of_several_texts_are_those_of_one() -> None:
    random, context = np.random.default_rng(3), 64
    parts = [Scores(random.random(31 * chunks), None, random.random(31 * chunks)) for chunks in (30, 80)]
    assert parts[0].divergences is not None and parts[1].divergences is not None
    whole = Scores(
        np.concatenate([part.losses for part in parts]), None,
        np.concatenate([parts[0].divergences, parts[1].divergences]),
    )  # fmt: skip
    pooled = pooled_bands([by_position(part, context) for part in parts])
    for found, expected in zip(pooled, by_position(whole, context), strict=True):
        assert (found.start, found.stop, found.predictions) == (expected.start, expected.stop, expected.predictions)
        assert found.divergence is not None and expected.divergence is not None
        assert found.loss.value == pytest.approx(expected.loss.value)
        assert found.divergence.value == pytest.approx(expected.divergence.value)
        # The error of a text with another mean is not that of one text: it lacks the variance between both.
        assert found.loss.stderr == pytest.approx(expected.loss.stderr, rel=0.1)
