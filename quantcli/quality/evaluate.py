"""Perplexity of a model on a text, and the Kullback-Leibler divergence from another file of the same model.

The definitions are those of llama.cpp's `tools/perplexity/perplexity.cpp`, so that the numbers are comparable:

- The tokens of the text are cut into chunks of the context's length.
- Each chunk is evaluated with an empty KV cache. Its first token is replaced by BOS if the vocabulary adds one.
- The predictions in the second half of the chunk are scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import UsageError
from quantcli.kernels.scoring import compare, entropy, score
from quantcli.quality.chunks import cut
from quantcli.quality.journal import Steps, computed
from quantcli.quality.positions import Band, by_position
from quantcli.quality.reference import check_vocabulary
from quantcli.quality.statistics import Difference, Evaluation, Scores, joined
from quantcli.runner.cache import Cache
from quantcli.runner.load import LoadedModel
from quantcli.runner.model import Model
from quantcli.runner.text.sampling import diverged
from quantcli.runner.text.tokenizer import Tokenizer

DEFAULT_CONTEXT: Final = 512
SHORTEST_CONTEXT: Final = 4
"""The smallest chunk, in tokens, that has predictions to score."""

LOGITS_AT_ONCE: Final = 1 << 24
"""About how many logits of a model are held at once, which bounds memory for a large vocabulary."""

QUARTERS: Final = 4
"""Parts of a context for which a text is scored by position."""

SHORTEST_BY_QUARTER: Final = 2 * QUARTERS
"""The smallest chunk, in tokens, that has predictions to score in each of them."""

THE_TEXT: Final = "the text"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TextEvaluation:
    """Several models on one text.

    evaluations   one per model
    differences   each model but the first, minus the first
    bands         per model, how the scores depend on the position in the context
    quarters      one per model, where all positions were scored: the evaluations of the quarters of the context
    """

    evaluations: tuple[Evaluation, ...]
    differences: tuple[Difference, ...]
    bands: tuple[tuple[Band, ...], ...] = ()
    quarters: tuple[tuple[Evaluation, ...], ...] = ()


def evaluate(
    loaded: LoadedModel,
    text: str,
    *,
    context: int = DEFAULT_CONTEXT,
    chunks: int | None = None,
    base: LoadedModel | None = None,
    advance: Callable[[int, int, float], None] = lambda done, total, perplexity: None,
) -> Evaluation:
    """Score a model on a text: `evaluate_all` for one of each."""
    texts = [(THE_TEXT, text)]
    return evaluate_all([loaded], texts, context=context, chunks=chunks, base=base, advance=advance)[0].evaluations[0]


def evaluate_all(
    models: Sequence[LoadedModel],
    texts: Sequence[tuple[str, str]],
    *,
    context: int = DEFAULT_CONTEXT,
    chunks: int | None = None,
    base: LoadedModel | None = None,
    entropies: bool = False,
    by_quarter: Collection[str] = (),
    steps: Steps = computed,
    advance: Callable[[int, int, float], None] = lambda done, total, perplexity: None,
) -> list[TextEvaluation]:
    """Score models on texts, and with `base` compare their predictions with those of that file.

    All models evaluate a chunk before the next one, and the base evaluates it once. So memory does not grow with the text,
    apart from a few numbers per position.

    Args:
        models: the models, which have one vocabulary.
        texts: names, for messages, and texts.
        context: tokens in a chunk.
        chunks: how many chunks of each text to score; None for all.
        base: the file to compare with, such as an unquantized one.
        entropies: whether to measure the entropy of the base's predictions too.
        by_quarter: names of texts for which all positions are scored, to tell the quarters of the context apart. Their
            other figures are still those of the second half.
        steps: how the scores of a chunk are computed, or found in a journal.
        advance: called after each chunk with the number done, the number of all, and the first model's perplexity on the
            text so far.

    Returns:
        The evaluations of each text.

    Raises:
        UsageError: for a context of fewer than `SHORTEST_CONTEXT` tokens, or `SHORTEST_BY_QUARTER`.
        ModelError: if a file has no tokenizer, or another vocabulary than the base, or than the first without one.
        GenerationError: for a text of less than two chunks, logits that are not finite, or an infinite divergence.
    """
    _check_context(context, bool(by_quarter))
    for model in models if base is not None else models[1:]:
        check_vocabulary(model, base or models[0])
    pieces = [cut_text(models[0].tokenizer, text, context, chunks, name) for name, text in texts]
    readers = [_Reader(model.model, context) for model in models]
    base_reader = None if base is None else _Reader(base.model, context)
    done, total = 0, sum(map(len, pieces))

    def score(chunk: Sequence[int], first: int) -> list[Scores]:
        return steps(Scores, partial(_score_chunk, chunk, first, readers, base_reader, entropies))

    def count(perplexity: float) -> None:
        nonlocal done
        done += 1
        advance(done, total, perplexity)

    results = []
    for (name, _), piece in zip(texts, pieces, strict=True):
        whole = name in by_quarter
        scored = _score_text(piece, whole, score, count)
        results.append(_with_quarters(scored, len(piece), context) if whole else _evaluated(scored, len(piece), context))
    return results


def _score_text(
    chunks: Sequence[Sequence[int]],
    whole: bool,
    score: Callable[[Sequence[int], int], list[Scores]],
    advance: Callable[[float], None],
) -> list[Scores]:
    """The scores of each model on the chunks of a text. `score` gives those of a chunk from a token on: from the first one
    with `whole`, else those of the second half. `advance` is called with the first model's perplexity so far."""
    found = []
    loss = 0.0
    for number, chunk in enumerate(chunks, start=1):
        found.append(score(chunk, 0 if whole else len(chunk) // 2))
        loss += float(found[-1][0].losses.mean())
        advance(math.exp(loss / number))
    return [joined(list(parts)) for parts in zip(*found, strict=True)]


def _check_context(context: int, by_quarter: bool) -> None:
    if context < SHORTEST_CONTEXT:
        raise UsageError(f"a context of {context} tokens has no tokens to score, expected {SHORTEST_CONTEXT} or more")
    if by_quarter and context < SHORTEST_BY_QUARTER:
        what = f"a context of {context} tokens is too short to tell its quarters apart"
        raise UsageError(f"{what}, expected {SHORTEST_BY_QUARTER} or more")


def _evaluated(scored: Sequence[Scores], chunks: int, context: int) -> TextEvaluation:
    """The evaluation of a text from the scores of the second half of its chunks."""
    evaluations = tuple(scores.evaluation(chunks) for scores in scored)
    differences = tuple(scored[0].difference(other) for other in scored[1:])
    return TextEvaluation(evaluations, differences, tuple(by_position(scores, context) for scores in scored))


def _with_quarters(scored: Sequence[Scores], chunks: int, context: int) -> TextEvaluation:
    """The evaluation of a text whose chunks are scored from their first token on."""
    places = np.tile(np.arange(context - 1), chunks)
    second_half = _evaluated([scores.part(places >= context // 2) for scores in scored], chunks, context)
    quarter = places * QUARTERS // context
    quarters = [tuple(scores.part(quarter == number).evaluation(chunks) for number in range(QUARTERS)) for scores in scored]
    return replace(second_half, quarters=tuple(quarters))


def cut_text(tokenizer: Tokenizer, text: str, context: int, limit: int | None, name: str = THE_TEXT) -> list[list[int]]:
    """The chunks of a text, `context` tokens each, at most `limit`: `chunks.cut`. `name` is for its error.

    Raises:
        GenerationError: if the text has fewer than two chunks.
    """
    need = f"a perplexity over chunks of {context} needs"
    return cut(tokenizer, text.removesuffix("\n"), context, limit, name=name, need=need, shortest=SHORTEST_CONTEXT)


class _Reader:
    """A model that evaluates chunks, each with an empty KV cache."""

    def __init__(self, model: Model, context: int) -> None:
        self._model = model
        self._context = context
        self._cache = Cache(model.sizes, context)
        self._step = max(1, LOGITS_AT_ONCE // model.vocabulary)

    def predictions(self, chunk: Sequence[int], first: int) -> Iterator[Floats]:
        """Logits, float32 `(n, vocabulary)`, in batches: the predictions after each token from number `first` on, without
        those after the last."""
        self._cache.rewind(0)
        if first:
            self._model.hidden(chunk[:first], self._cache)
        for start in range(first, len(chunk) - 1, self._step):
            yield self._model.forward(chunk[start : min(start + self._step, len(chunk) - 1)], self._cache, every=True)


def _score_chunk(
    chunk: Sequence[int], first: int, readers: Sequence[_Reader], base: _Reader | None, entropies: bool
) -> list[Scores]:
    """The scores of each model on a chunk, from token `first` on. Logits of the base and one model are held at a time."""
    following = np.array(chunk[first + 1 :], np.int64)
    predictions = [reader.predictions(chunk, first) for reader in readers]
    parts: list[list[Scores]] = [[] for _ in readers]
    if base is None:
        for column, batches in zip(parts, predictions, strict=True):
            start = 0
            for logits in batches:
                column.append(_scored(logits, following[start : start + len(logits)]))
                start += len(logits)
    else:
        start = 0
        for base_logits in base.predictions(chunk, first):
            expected = following[start : start + len(base_logits)]
            start += len(base_logits)
            measured = _entropies(base_logits) if entropies else None
            for column, batches in zip(parts, predictions, strict=True):
                column.append(_compared(next(batches), base_logits, expected, measured))
    return [joined(column) for column in parts]


def _entropies(logits: Floats) -> NDArray[np.float64]:
    found = np.empty(len(logits))
    entropy(logits, found)
    return found


def _scored(logits: Floats, expected: NDArray[np.int64]) -> Scores:
    losses, tops = np.empty(len(logits)), np.empty(len(logits), np.int32)
    score(logits, expected, losses, tops)
    return Scores(_finite(losses))


def _compared(logits: Floats, base: Floats, expected: NDArray[np.int64], entropies: NDArray[np.float64] | None) -> Scores:
    losses, tops = np.empty((2, len(logits))), np.empty((2, len(logits)), np.int32)
    divergences = np.empty(len(logits))
    compare(logits, base, expected, losses, tops, divergences)
    return Scores(_finite(losses[0]), _finite(losses[1]), _finite(divergences), tops[0] == tops[1], entropies)


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values. A logit of minus infinity makes a loss or a divergence infinite where its token matters."""
    if not np.isfinite(values).all():
        raise diverged()
    return values
