"""Perplexity of a model on a text, and the Kullback-Leibler divergence from another file of the same model.

The definitions are those of llama.cpp's `tools/perplexity/perplexity.cpp`, so that the numbers are comparable:

- The tokens of the text are cut into chunks of the context's length.
- Each chunk is evaluated with an empty KV cache. Its first token is replaced by BOS if the vocabulary adds one.
- The predictions in the second half of the chunk are scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import GenerationError, ModelError, UsageError
from quantcli.kernels.scoring import compare, score
from quantcli.quality.chunks import cut
from quantcli.runner.cache import Cache
from quantcli.runner.load import LoadedModel
from quantcli.runner.model import Model
from quantcli.runner.text.sampling import DIVERGED
from quantcli.runner.text.tokenizer import Tokenizer

DEFAULT_CONTEXT: Final = 512
SHORTEST_CONTEXT: Final = 4
"""The smallest chunk, in tokens, that has predictions to score."""

LOGITS_AT_ONCE: Final = 1 << 24
"""About how many logits are held at once, which bounds memory for a large vocabulary."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Divergence:
    """Statistics of the Kullback-Leibler divergences from the base at all scored positions, in nats.

    `same_top` is the fraction of positions where both models have the same most likely token.
    """

    base_perplexity: float
    mean: float
    median: float
    p99: float
    max: float
    same_top: float


@dataclass(frozen=True)
class Evaluation:
    """The perplexity and its standard error over `tokens` scored predictions in `chunks` chunks."""

    perplexity: float
    stderr: float
    tokens: int
    chunks: int
    divergence: Divergence | None


def evaluate(
    loaded: LoadedModel,
    text: str,
    *,
    context: int = DEFAULT_CONTEXT,
    chunks: int | None = None,
    base: LoadedModel | None = None,
    advance: Callable[[int, int, float], None] = lambda done, total, perplexity: None,
) -> Evaluation:
    """Score a model on a text, and with `base` compare its predictions with those of that file.

    Both models evaluate a chunk before the next one, so memory does not grow with the text.

    Args:
        loaded: the model.
        text: the text.
        context: tokens in a chunk.
        chunks: how many chunks to score; None for all.
        base: the file to compare with, such as an unquantized one.
        advance: called after each chunk with the number done, the number of all, and the perplexity so far.

    Raises:
        UsageError: for a context of fewer than `SHORTEST_CONTEXT` tokens.
        ModelError: if a file has no tokenizer, or `base` has another vocabulary.
        GenerationError: for a text of less than two chunks, or logits that are not finite.
    """
    if context < SHORTEST_CONTEXT:
        raise UsageError(f"a context of {context} tokens has no tokens to score, expected {SHORTEST_CONTEXT} or more")
    tokenizer = loaded.tokenizer
    if base is not None:
        check_same_vocabulary(loaded, base)
    pieces = cut_text(tokenizer, text, context, chunks)
    ours = _Reader(loaded.model, context)
    theirs = None if base is None else _Reader(base.model, context)
    scores = _Scores()
    for done, chunk in enumerate(pieces, start=1):
        _score_chunk(chunk, ours, theirs, scores)
        advance(done, len(pieces), math.exp(np.mean(scores.losses)))
    return scores.result(len(pieces))


def cut_text(tokenizer: Tokenizer, text: str, context: int, limit: int | None) -> list[list[int]]:
    """The chunks of a text, `context` tokens each, at most `limit`: `chunks.cut`.

    Raises:
        GenerationError: if the text has fewer than two chunks.
    """
    need = f"a perplexity over chunks of {context} needs"
    return cut(
        tokenizer, text.removesuffix("\n"), context, limit, name="the text", need=need, shortest=SHORTEST_CONTEXT
    )


def check_same_vocabulary(loaded: LoadedModel, base: LoadedModel) -> None:
    """Check that the predictions of two files can be compared.

    Raises:
        ModelError: if their vocabularies differ.
    """
    if loaded.tokenizer.vocabulary.texts.data != base.tokenizer.vocabulary.texts.data or (
        loaded.model.vocabulary != base.model.vocabulary
    ):
        raise ModelError(
            f"{loaded.path} and {base.path} have different vocabularies: their predictions cannot be compared",
            hint="the base is the same model in a better type",
        )


class _Reader:
    """A model that evaluates chunks, each with an empty KV cache."""

    def __init__(self, model: Model, context: int) -> None:
        self._model = model
        self._context = context
        self._cache = Cache(model.sizes, context)
        self._step = max(1, LOGITS_AT_ONCE // model.vocabulary)

    def predictions(self, chunk: Sequence[int]) -> Iterator[Floats]:
        """Logits, float32 `(n, vocabulary)`, in batches: the predictions after each token of the second half, without those
        after the last."""
        first = len(chunk) // 2
        self._cache.rewind(0)
        self._model.hidden(chunk[:first], self._cache)
        for start in range(first, len(chunk) - 1, self._step):
            yield self._model.forward(chunk[start : min(start + self._step, len(chunk) - 1)], self._cache, every=True)


@dataclass
class _Scores:
    """The losses and divergences at the positions scored so far."""

    losses: list[float] = field(default_factory=list)
    base_losses: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    same_top: int = 0

    def result(self, chunks: int) -> Evaluation:
        losses = np.array(self.losses)
        perplexity = math.exp(losses.mean())
        # The standard error of the mean loss, propagated through exp.
        stderr = perplexity * math.sqrt(max(0.0, losses.var()) / (len(losses) - 1)) if len(losses) > 1 else 0.0
        return Evaluation(perplexity, stderr, len(losses), chunks, self._divergence() if self.divergences else None)

    def _divergence(self) -> Divergence:
        values = np.array(self.divergences)
        return Divergence(
            base_perplexity=math.exp(np.mean(self.base_losses)),
            mean=float(values.mean()),
            median=float(np.median(values)),
            p99=float(np.percentile(values, 99)),
            max=float(values.max()),
            same_top=self.same_top / len(values),
        )


def _score_chunk(chunk: Sequence[int], ours: _Reader, theirs: _Reader | None, scores: _Scores) -> None:
    """Add the predictions of a chunk to the scores."""
    following = np.array(chunk[len(chunk) // 2 + 1 :], np.int64)
    bases = None if theirs is None else theirs.predictions(chunk)
    start = 0
    for logits in ours.predictions(chunk):
        expected = following[start : start + len(logits)]
        start += len(logits)
        losses, tops = np.empty((2, len(logits))), np.empty((2, len(logits)), np.int32)
        if bases is None:
            score(logits, expected, losses[0], tops[0])
        else:
            divergences = np.empty(len(logits))
            compare(logits, next(bases), expected, losses, tops, divergences)
            scores.base_losses += _finite(losses[1])
            scores.divergences += divergences.tolist()
            scores.same_top += int(np.count_nonzero(tops[0] == tops[1]))
        scores.losses += _finite(losses[0])


def _finite(losses: NDArray[np.float64]) -> list[float]:
    if not np.isfinite(losses).all():
        raise GenerationError(DIVERGED)
    return losses.tolist()  # type: ignore[no-any-return]
