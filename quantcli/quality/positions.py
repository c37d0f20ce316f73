"""How losses and divergences depend on the position in the context.

The scored positions of a chunk are cut into bands of consecutive ones, and each band is averaged over all chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from quantcli.quality.statistics import Estimate, Scores, mean, pooled_mean

BANDS: Final = 16
"""The most bands."""


@dataclass(frozen=True)
class Band:
    """The predictions after the tokens `start` to `stop - 1` of each chunk, counted from 0.

    predictions   how many, in all chunks
    loss          the mean of -log p of the right token, in nats
    divergence    the mean Kullback-Leibler divergence from the base, in nats; None without a base
    """

    start: int
    stop: int
    predictions: int
    loss: Estimate
    divergence: Estimate | None


def by_position(scores: Scores, context: int) -> tuple[Band, ...]:
    """The bands of the scores of whole chunks of `context` tokens, whose second half is scored."""
    first = context // 2
    length = context - 1 - first
    losses = scores.losses.reshape(-1, length)
    divergences = None if scores.divergences is None else scores.divergences.reshape(-1, length)
    edges = np.linspace(0, length, min(BANDS, length) + 1).round().astype(int).tolist()
    return tuple(
        Band(
            first + start,
            first + stop,
            losses[:, start:stop].size,
            mean(losses[:, start:stop].ravel()),
            None if divergences is None else mean(divergences[:, start:stop].ravel()),
        )
        for start, stop in pairwise(edges)
    )


def pooled_bands(texts: Sequence[tuple[Band, ...]]) -> tuple[Band, ...]:
    """The bands of one model on several texts as those of one text. The texts have one context length."""
    return tuple(_pooled(bands) for bands in zip(*texts, strict=True))


def _pooled(bands: Sequence[Band]) -> Band:
    counts = [band.predictions for band in bands]
    divergences = [band.divergence for band in bands if band.divergence is not None]
    return Band(
        bands[0].start,
        bands[0].stop,
        sum(counts),
        pooled_mean([band.loss for band in bands], counts),
        pooled_mean(divergences, counts) if divergences else None,
    )
