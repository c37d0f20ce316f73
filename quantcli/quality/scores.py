"""How far the scores of a reranker or a classifier are from those of another file of the same model.

Each line of a text has several scores. A reranker reads it as a query and the lines after it as documents; after the last
line come the first ones. A classifier reads it alone and scores each label. Three figures say what has changed, each a mean
over the lines:

- The RMS change of a line's scores.
- Whether the same document, or label, has the highest score.
- Spearman's rank correlation of a line's scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import ModelError
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
from quantcli.runner.cache import Cache
from quantcli.runner.load import LoadedModel
from quantcli.runner.text.sampling import diverged
from quantcli.runner.text.tokenizer import Tokenizer

DOCUMENTS: Final = 10
"""The most lines that a reranker scores for a query."""

_ADDED: Final = 4
"""The most tokens that are added to those of a query and a document."""


@dataclass(frozen=True)
class ScoreEvaluation:
    """How a model scores the lines of a text, compared with the base.

    candidates         the scores of each line: of documents, or labels
    rms_change         the RMS change of a line's scores
    deviation          the standard deviation of all scores of the base, to compare the change with
    same_best          the fraction of lines whose highest score is that of the same candidate
    rank_correlation   Spearman's, of a line's scores
    """

    lines: int
    candidates: int
    rms_change: Estimate
    deviation: float
    same_best: Estimate
    rank_correlation: Estimate


@dataclass(frozen=True)
class ScoreDifference:
    """One model minus another on the same lines."""

    rms_change: Estimate
    same_best: Estimate
    rank_correlation: Estimate


@dataclass(frozen=True, eq=False)
class ScoreAgreement:
    """What was measured of each line, all `(n,)`: RMS changes and rank correlations in float64, `same_best` bool."""

    candidates: int
    deviation: float
    changes: Doubles
    same_best: NDArray[np.bool_]
    rank_correlations: Doubles

    def evaluation(self) -> ScoreEvaluation:
        """The statistics of the text."""
        return ScoreEvaluation(
            lines=len(self.changes),
            candidates=self.candidates,
            rms_change=mean(self.changes),
            deviation=self.deviation,
            same_best=mean(self.same_best.astype(np.float64)),
            rank_correlation=mean(self.rank_correlations),
        )

    def difference(self, other: ScoreAgreement, /) -> ScoreDifference:
        """`other` minus this."""
        return ScoreDifference(
            mean(other.changes - self.changes),
            mean(other.same_best.astype(np.float64) - self.same_best),
            mean(other.rank_correlations - self.rank_correlations),
        )


def evaluate_scores(
    models: Sequence[LoadedModel], texts: Sequence[tuple[str, Sequence[str]]], *, base: LoadedModel, **options: Any
) -> list[TextComparison[ScoreEvaluation, ScoreDifference]]:
    """Compare the scores of models with those of a base: `lines.compare_lines`, which has the `options`.

    Raises:
        ModelError: if a file has another number of labels than the base, or none; and as `compare_lines`.
        GenerationError: as `compare_lines`.
    """
    labels = _labels(base)
    for model in models:
        if (found := _labels(model)) != labels:
            raise other_model(model, base, f"{found} labels and {labels} labels")
    measure: Measure[ScoreEvaluation, ScoreDifference]
    if labels == 1:
        measure = Measure(_bare_line, _cut_bare, partial(_ranked, base.tokenizer), agreement)
    else:
        measure = Measure(whole_line, cut_line, _classified, agreement)
    return compare_lines(models, texts, measure, base=base, **options)


def _labels(loaded: LoadedModel) -> int:
    return 0 if loaded.model.classifier is None else loaded.model.classifier.labels


def _bare_line(tokenizer: Tokenizer, line: str) -> Tokens:
    return tokenizer.encode(line, add_special=False)


def _cut_bare(tokenizer: Tokenizer, tokens: Tokens, longest: int) -> Tokens:
    """The first tokens of a line, so few that two lines make a pair."""
    return tokens[: max(1, (longest - _ADDED) // 2)]


def _ranked(tokenizer: Tokenizer, loaded: LoadedModel, lines: Sequence[Tokens], some: range) -> Floats:
    """The scores of the lines after each of some lines, as documents for it."""
    count = len(lines)
    after = range(1, min(DOCUMENTS, count - 1) + 1)
    pairs = [[tokenizer.pair(lines[line], lines[(line + place) % count]) for place in after] for line in some]
    return np.array([[scores(loaded, pair)[0] for pair in of_line] for of_line in pairs])


def _classified(loaded: LoadedModel, lines: Sequence[Tokens], some: range) -> Floats:
    return np.array([scores(loaded, lines[number]) for number in some])


def scores(loaded: LoadedModel, tokens: Tokens) -> Floats:
    """The scores of a text, float32 `(labels,)`.

    Raises:
        ModelError: for a model without a classifier.
        GenerationError: for scores that are not finite, and as `Model.hidden`.
    """
    model = loaded.model
    if model.classifier is None:
        raise ModelError(f"{loaded.path}: the file has no classifier")
    found = model.classifier(model.hidden(tokens, Cache(model.sizes, len(tokens), "f32")))
    if not np.isfinite(found).all():
        raise diverged()
    return found


def agreement(found: Floats, base: Floats) -> ScoreAgreement:
    """Compare two models' scores of the same lines, float32 `(n, candidates)`."""
    ours, theirs = found.astype(np.float64), base.astype(np.float64)
    return ScoreAgreement(
        candidates=theirs.shape[1],
        deviation=float(theirs.std()),
        changes=np.sqrt(((ours - theirs) ** 2).mean(axis=1)),
        same_best=ours.argmax(axis=1) == theirs.argmax(axis=1),
        rank_correlations=np.array([rank_correlation(*pair) for pair in zip(ours, theirs, strict=True)]),
    )
