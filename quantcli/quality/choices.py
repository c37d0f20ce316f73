"""Accuracy on multiple-choice questions by likelihood, and the answers that differ from those of a base.

Each ending is scored by the log-probabilities of its tokens after the prompt. The model's answer is the ending with the
highest sum, or normalized by length, the highest mean per token. The latter is what llama-perplexity reports for HellaSwag.
As there, the tokens that all endings begin with do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import GenerationError
from quantcli.kernels.scoring import score
from quantcli.quality.evaluate import LOGITS_AT_ONCE
from quantcli.quality.journal import Steps, computed
from quantcli.quality.questions import Question
from quantcli.quality.reference import check_vocabulary
from quantcli.quality.statistics import Estimate, mean
from quantcli.runner.cache import Cache
from quantcli.runner.load import LoadedModel
from quantcli.runner.text.sampling import diverged
from quantcli.runner.text.tokenizer import Tokenizer

Picks = NDArray[np.int64]


@dataclass(frozen=True)
class Flips:
    """Answers that differ from those of the base.

    share       the fraction of all questions
    lost        how many questions the base answers rightly, and the model does not
    won         how many the other way round
    exchanged   how many have two different wrong answers
    """

    share: Estimate
    lost: int
    won: int
    exchanged: int


@dataclass(frozen=True)
class Accuracy:
    """The fraction of right answers, and with a base what has changed."""

    value: Estimate
    flips: Flips | None


@dataclass(frozen=True)
class ChoiceEvaluation:
    """A model's answers by the sum of the log-probabilities, and by their mean per token (`normalized`)."""

    questions: int
    accuracy: Accuracy
    normalized: Accuracy


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model picks: an index for each question, int64 `(n,)`, by sum and by mean."""

    by_sum: Picks
    by_mean: Picks


@dataclass(frozen=True)
class Tokens:
    """A question in tokens: the prompt with each ending, and how many tokens all of them begin with."""

    sequences: tuple[tuple[int, ...], ...]
    shared: int


def evaluate_choices(
    models: Sequence[LoadedModel],
    questions: Sequence[Question],
    *,
    base: LoadedModel | None = None,
    steps: Steps = computed,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[ChoiceEvaluation]:
    """Answer questions with each model, and with `base` compare the answers with those of that file.

    `advance` is called with the number of answers so far and that of all. The base, if any, answers first, and its
    evaluation is the first of the results. `steps` is how the answer to a question is computed, or found in a journal.

    Raises:
        ModelError: if a file has no tokenizer, or another vocabulary than the first.
        GenerationError: for a question whose endings have no token before them, or logits that are not finite.
    """
    everyone = [*([] if base is None else [base]), *models]
    for model in everyone[1:]:
        check_vocabulary(model, everyone[0])
    asked = [tokenized(models[0].tokenizer, question) for question in questions]
    right = np.array([question.answer for question in questions], np.int64)
    answers = []
    for number, model in enumerate(everyone):

        def count(done: int, before: int = number * len(asked)) -> None:
            advance(before + done, len(everyone) * len(asked))

        answers.append(answer(model, asked, steps, count))
    first = None if base is None else answers[0]
    return [_evaluation(found, right, None if found is first else first) for found in answers]


def tokenized(tokenizer: Tokenizer, question: Question) -> Tokens:
    """The tokens of a question. Prompt and ending are tokenized together.

    Raises:
        GenerationError: if no token comes before the endings.
    """
    begin = [tokenizer.bos] if tokenizer.settings.add_bos and tokenizer.bos is not None else []
    texts = (question.prompt + ending for ending in question.endings)
    sequences = [[*begin, *tokenizer.encode(text, add_special=False)] for text in texts]
    same = (len(set(column)) == 1 for column in zip(*sequences, strict=False))
    shared = next((place for place, equal in enumerate(same) if not equal), len(min(sequences, key=len)) - 1)
    if shared == 0:
        raise GenerationError(f"question of line {question.line}: no token comes before the endings")
    return Tokens(tuple(map(tuple, sequences)), shared)


def answer(
    loaded: LoadedModel,
    asked: Sequence[Tokens],
    steps: Steps = computed,
    advance: Callable[[int], None] = lambda done: None,
) -> Answers:
    """A model's answers to questions.

    Raises:
        GenerationError: for logits that are not finite.
    """
    longest = max(len(tokens) for question in asked for tokens in question.sequences)
    cache = Cache(loaded.model.sizes, longest)
    picks = []
    for number, question in enumerate(asked, start=1):
        picks += steps(Answers, partial(_picks, loaded, question, cache))
        advance(number)
    return Answers(np.concatenate([pick.by_sum for pick in picks]), np.concatenate([pick.by_mean for pick in picks]))


def _picks(loaded: LoadedModel, question: Tokens, cache: Cache) -> list[Answers]:
    """The answers to one question."""
    losses = ending_losses(loaded, question, cache)
    by_sum, by_mean = np.argmin([found.sum() for found in losses]), np.argmin([found.mean() for found in losses])
    return [Answers(np.array([by_sum]), np.array([by_mean]))]


def ending_losses(loaded: LoadedModel, question: Tokens, cache: Cache) -> list[NDArray[np.float64]]:
    """-log p of the tokens of each ending, float64. The tokens that all endings begin with are evaluated once.

    Raises:
        GenerationError: for logits that are not finite.
    """
    model, kept = loaded.model, question.shared - 1
    step = max(1, LOGITS_AT_ONCE // model.vocabulary)
    cache.rewind(0)
    results = []
    for tokens in question.sequences:
        # Recurrent states cannot be rewound: then the cache is empty, and the prompt is evaluated again.
        there = cache.rewind(min(kept, cache.length))
        if there < kept:
            model.hidden(tokens[there:kept], cache)
        losses = []
        for start in range(kept, len(tokens) - 1, step):
            stop = min(start + step, len(tokens) - 1)
            logits = model.forward(tokens[start:stop], cache, every=True)
            found, tops = np.empty(len(logits)), np.empty(len(logits), np.int32)
            score(logits, np.array(tokens[start + 1 : stop + 1], np.int64), found, tops)
            losses.append(found)
        results.append(np.concatenate(losses))
        if not np.isfinite(results[-1]).all():
            raise diverged()
    return results


def _evaluation(found: Answers, right: Picks, base: Answers | None) -> ChoiceEvaluation:
    by_sum = _accuracy(found.by_sum, right, None if base is None else base.by_sum)
    return ChoiceEvaluation(len(right), by_sum, _accuracy(found.by_mean, right, None if base is None else base.by_mean))


def _accuracy(picks: Picks, right: Picks, base: Picks | None) -> Accuracy:
    return Accuracy(_share(picks == right), None if base is None else _flips(picks, right, base))


def _flips(picks: Picks, right: Picks, base: Picks) -> Flips:
    flipped, was_right, is_right = picks != base, base == right, picks == right
    lost, won = int((flipped & was_right).sum()), int((flipped & is_right).sum())
    return Flips(_share(flipped), lost, won, int(flipped.sum()) - lost - won)


def _share(chosen: NDArray[np.bool_]) -> Estimate:
    return mean(chosen.astype(np.float64))
