"""Evaluations on the lines of a text, for models that predict no tokens: embedding models, classifiers and rerankers.

A model gives some numbers for each line, which are compared with those of another file of the same model. Standard errors
treat lines as independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import GenerationError, warn
from quantcli.core.listing import counted
from quantcli.quality.journal import Steps, computed
from quantcli.quality.reference import check_vocabulary
from quantcli.quality.statistics import Doubles
from quantcli.runner.load import LoadedModel
from quantcli.runner.text.tokenizer import Tokenizer

Floats = NDArray[np.float32]
Tokens = list[int]

FEWEST: Final = 3
"""The fewest lines that can be ranked: each of them has two others."""

LINES_AT_ONCE: Final = 16
"""Lines in one step, which a journal keeps."""

E_co = TypeVar("E_co", covariant=True)
D_co = TypeVar("D_co", covariant=True)
E = TypeVar("E")
D = TypeVar("D")


class Agreement(Protocol[E_co, D_co]):
    """What was measured of each line."""

    def evaluation(self) -> E_co:
        """The statistics of the text."""

    def difference(self, other: Any, /) -> D_co:
        """`other`, of the same kind, minus this."""


@dataclass(frozen=True)
class Measure(Generic[E, D]):
    """What is measured on lines.

    tokens    a tokenizer and a line to token ids
    cut       token ids to at most so many
    numbers   a model, all lines in tokens and the places of some of them to float32 `(some, n)`
    compare   the numbers of a model and of the base, float32 `(lines, n)`, to what was measured of each line
    """

    tokens: Callable[[Tokenizer, str], Tokens]
    cut: Callable[[Tokenizer, Tokens, int], Tokens]
    numbers: Callable[[LoadedModel, Sequence[Tokens], range], Floats]
    compare: Callable[[Floats, Floats], Agreement[E, D]]


@dataclass(frozen=True)
class TextComparison(Generic[E, D]):
    """Several models on one text: an evaluation of each, and each but the first minus the first."""

    evaluations: tuple[E, ...]
    differences: tuple[D, ...]


@dataclass(frozen=True, eq=False)
class _Rows:
    """The numbers of some lines, float32 `(some, n)`."""

    rows: Floats


def compare_lines(
    models: Sequence[LoadedModel],
    texts: Sequence[tuple[str, Sequence[str]]],
    measure: Measure[E, D],
    *,
    base: LoadedModel,
    context: int,
    limit: int | None = None,
    steps: Steps = computed,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[TextComparison[E, D]]:
    """Compare models with a base on the lines of texts. Two models' numbers for one text are held at a time.

    Args:
        models: the models, which have the base's vocabulary.
        texts: names, for messages, and lines.
        measure: what is measured.
        base: the file to compare with, such as an unquantized one.
        context: the most tokens of a line. Longer lines are cut, with a warning.
        limit: how many lines of each text to take; None for all.
        steps: how numbers are computed, or found in a journal.
        advance: called with the number of lines so far and that of all.

    Returns:
        The comparison of each text.

    Raises:
        ModelError: if a file has no tokenizer, or another vocabulary than the base.
        GenerationError: for a text of fewer than `FEWEST` different lines, or an output that is not finite.
    """
    for model in models:
        check_vocabulary(model, base)
    longest = min(context, base.model.sizes.context)
    pieces = [different(base.tokenizer, lines, measure, longest, limit, name) for name, lines in texts]
    done, total = 0, sum(map(len, pieces)) * (1 + len(models))

    def numbers(model: LoadedModel, lines: Sequence[Tokens]) -> Floats:
        nonlocal done
        parts = []
        for start in range(0, len(lines), LINES_AT_ONCE):
            some = range(start, min(start + LINES_AT_ONCE, len(lines)))
            parts += steps(_Rows, partial(_rows, measure, model, lines, some))
            done += len(some)
            advance(done, total)
        return np.concatenate([part.rows for part in parts])

    results = []
    for lines in pieces:
        expected = numbers(base, lines)
        found = [measure.compare(numbers(model, lines), expected) for model in models]
        differences = tuple(found[0].difference(other) for other in found[1:])
        results.append(TextComparison(tuple(each.evaluation() for each in found), differences))
    return results


def _rows(measure: Measure[E, D], model: LoadedModel, lines: Sequence[Tokens], some: range) -> list[_Rows]:
    return [_Rows(measure.numbers(model, lines, some))]


def different(
    tokenizer: Tokenizer, lines: Sequence[str], measure: Measure[E, D], longest: int, limit: int | None, name: str
) -> list[Tokens]:
    """Different lines in tokens, at most `limit`, cut to `longest` tokens.

    Blank lines are left out, and so is one with the tokens of an earlier one: which of both is nearer to a third would be a
    matter of rounding.

    Raises:
        GenerationError: for fewer than `FEWEST` lines.
    """
    found: dict[tuple[int, ...], None] = {}
    shortened = 0
    for line in filter(str.strip, lines):
        if len(found) == limit:
            break
        whole = measure.tokens(tokenizer, line)
        tokens = measure.cut(tokenizer, whole, longest)
        shortened += len(tokens) < len(whole)
        found.setdefault(tuple(tokens))
    if len(found) < FEWEST:
        what = f"{name} has {counted(len(found), 'different line')}"
        raise GenerationError(f"{what}, and a comparison needs {FEWEST} or more")
    if shortened:
        warn(f"{name}: {counted(shortened, 'line')} too long for {longest} tokens, cut")
    return list(map(list, found))


def whole_line(tokenizer: Tokenizer, line: str) -> Tokens:
    """The tokens of a line, with those that the tokenizer adds."""
    return tokenizer.encode(line)


def cut_line(tokenizer: Tokenizer, tokens: Tokens, longest: int) -> Tokens:
    """The first tokens of a line. One that the tokenizer adds at the end stays."""
    if len(tokens) <= longest:
        return tokens
    return [*tokens[: longest - 1], tokens[-1] if tokenizer.settings.add_eos else tokens[longest - 1]]


def rank_correlation(first: Doubles, second: Doubles) -> float:
    """Spearman's rank correlation of two sequences of numbers, with the mean rank for equal ones.

    Where all numbers of one are equal, it is 1 if those of the other are too, and otherwise 0.
    """
    one, other = _centred_ranks(first), _centred_ranks(second)
    norm = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / norm if norm else float(not one.any() and not other.any())


def _centred_ranks(values: Doubles) -> Doubles:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Doubles = (counts.cumsum() - (counts + len(values)) / 2)[places]
    return ranks
