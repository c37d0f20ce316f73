"""How far the embeddings of a model are from those of another file of the same model.

Three figures say what has changed, each a mean over the lines of a text:

- The cosine of the angle between both embeddings of a line.
- Whether a line has the same nearest other line by both models, as a search for the best match would find it.
- Spearman's rank correlation of the similarities of a line to all other lines: whether a search ranks them alike.

Similarities are cosines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.quality.lines import (
    Floats,
    Measure,
    TextComparison,
    Tokens,
    compare_lines,
    cut_line,
    rank_correlation,
    whole_line,
)
from quantcli.quality.reference import other_model
from quantcli.quality.statistics import Doubles, Estimate, mean
from quantcli.runner.embed import DEFAULT_POOLING, pooled, pooling_of
from quantcli.runner.load import LoadedModel

SIMILARITIES_AT_ONCE: Final = 1 << 19
"""About how many similarities of a model are held at once, which bounds memory for a text of many lines."""


@dataclass(frozen=True)
class EmbeddingEvaluation:
    """How a model embeds the lines of a text, compared with the base.

    cosine             of a line's embedding to that of the base
    p1, p5, min        the first and the fifth percentile of these cosines, and the lowest one
    same_nearest       the fraction of lines that have the same nearest other line by both
    rank_correlation   Spearman's, of the similarities to all other lines
    """

    lines: int
    cosine: Estimate
    p1: float
    p5: float
    min: float
    same_nearest: Estimate
    rank_correlation: Estimate


@dataclass(frozen=True)
class EmbeddingDifference:
    """One model minus another on the same lines."""

    cosine: Estimate
    same_nearest: Estimate
    rank_correlation: Estimate


@dataclass(frozen=True, eq=False)
class EmbeddingAgreement:
    """What was measured of each line, all `(n,)`: cosines and rank correlations in float64, `same_nearest` bool."""

    cosines: Doubles
    same_nearest: NDArray[np.bool_]
    rank_correlations: Doubles

    def evaluation(self) -> EmbeddingEvaluation:
        """The statistics of the text."""
        p1, p5 = np.percentile(self.cosines, (1, 5)).tolist()
        return EmbeddingEvaluation(
            lines=len(self.cosines),
            cosine=mean(self.cosines),
            p1=p1,
            p5=p5,
            min=float(self.cosines.min()),
            same_nearest=mean(self.same_nearest.astype(np.float64)),
            rank_correlation=mean(self.rank_correlations),
        )

    def difference(self, other: EmbeddingAgreement, /) -> EmbeddingDifference:
        """`other` minus this."""
        return EmbeddingDifference(
            mean(other.cosines - self.cosines),
            mean(other.same_nearest.astype(np.float64) - self.same_nearest),
            mean(other.rank_correlations - self.rank_correlations),
        )


def evaluate_embeddings(
    models: Sequence[LoadedModel], texts: Sequence[tuple[str, Sequence[str]]], *, base: LoadedModel, **options: Any
) -> list[TextComparison[EmbeddingEvaluation, EmbeddingDifference]]:
    """Compare the embeddings of models with those of a base: `lines.compare_lines`, which has the `options`.

    Raises:
        ModelError: if a file has another pooling than the base; and as `compare_lines`.
        UnsupportedError: for an unknown pooling in a file.
        GenerationError: as `compare_lines`.
    """
    pooling = _pooling(base)
    for model in models:
        if (found := _pooling(model)) != pooling:
            raise other_model(model, base, f"pooling {found!r} and pooling {pooling!r}")
    measure = Measure(whole_line, cut_line, partial(_embedded, pooling), agreement)
    return compare_lines(models, texts, measure, base=base, **options)


def _pooling(loaded: LoadedModel) -> str:
    """The pooling of a file. Rows of tokens, which are not pooled, have no neighbours: the default takes their place."""
    found = pooling_of(loaded)
    return DEFAULT_POOLING if found == "none" else found


def _embedded(pooling: str, loaded: LoadedModel, lines: Sequence[Tokens], some: range) -> Floats:
    return np.concatenate([pooled(loaded, lines[number], pooling) for number in some])


def agreement(found: Floats, base: Floats) -> EmbeddingAgreement:
    """Compare two models' embeddings of the same lines, float32 `(n, width)`, not necessarily normalized."""
    ours, theirs = _unit(found), _unit(base)
    same: list[NDArray[np.bool_]] = []
    correlations: list[float] = []
    for one, other in zip(_similarities(ours), _similarities(theirs), strict=True):
        same.append(one.argmax(axis=1) == other.argmax(axis=1))
        correlations += [rank_correlation(*pair) for pair in zip(one, other, strict=True)]
    return EmbeddingAgreement(np.clip((ours * theirs).sum(axis=1), -1, 1), np.concatenate(same), np.array(correlations))


def _unit(rows: Floats) -> Doubles:
    """Rows divided by their L2 norms. Rows of zeros stay."""
    wide = rows.astype(np.float64)
    result: Doubles = wide / np.maximum(np.sqrt((wide**2).sum(axis=1, keepdims=True)), np.finfo(np.float64).tiny)
    return result


def _similarities(units: Doubles) -> Iterator[Doubles]:
    """The cosines of each row to all others in order, float64 `(some, n - 1)`, in batches."""
    count = len(units)
    step = max(1, SIMILARITIES_AT_ONCE // count)
    for start in range(0, count, step):
        some = units[start : start + step] @ units.T
        others = np.arange(count) != np.arange(start, start + len(some))[:, None]
        yield some[others].reshape(len(some), count - 1)
