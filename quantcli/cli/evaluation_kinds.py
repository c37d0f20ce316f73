"""The kinds of evaluations of `quantize eval`, with how their results are shown.

Models that predict the next token are scored by these predictions. Embedding models, rerankers and classifiers are compared
with a base on the lines of the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quantcli.cli.choice_tables import choice_document, choice_views
from quantcli.cli.evaluating import counted_progress, text_progress, trained
from quantcli.cli.evaluations import Request, document, views
from quantcli.cli.line_tables import EMBEDDINGS, SCORES, Layout, line_document, line_views
from quantcli.cli.running import warn_beyond_training
from quantcli.cli.subject_tables import subject_document, subject_views
from quantcli.cli.terminal_plot import plotted
from quantcli.cli.text_tables import View
from quantcli.cli.texts import lines

if TYPE_CHECKING:
    from quantcli.quality.choices import ChoiceEvaluation
    from quantcli.quality.evaluate import TextEvaluation
    from quantcli.quality.journal import Steps
    from quantcli.quality.lines import TextComparison
    from quantcli.quality.questions import Question
    from quantcli.quality.subjects import Subject
    from quantcli.runner.load import LoadedModel


@dataclass(frozen=True)
class Work:
    """What to evaluate: texts with what messages call each, built-in texts, and files of questions."""

    texts: list[tuple[str, str]]
    subjects: tuple[Subject, ...]
    questions: list[tuple[Path, list[Question]]]

    @property
    def named(self) -> list[tuple[str, str]]:
        """All texts, the built-in ones last, with what messages call each."""
        return [*self.texts, *((_called(subject), subject.text) for subject in self.subjects)]


def _called(subject: Subject) -> str:
    return f"the built-in text {subject.name!r}"


class Found(Protocol):
    """Results of an evaluation, for people and programs."""

    def document(self, request: Request, seconds: float) -> dict[str, Any]:
        """The JSON document."""

    def views(self, request: Request, *, plot: bool) -> Iterator[View]:
        """The tables, and with `plot` a plot."""


@dataclass(frozen=True)
class Predictions:
    """The results of the texts, by subject, and of the questions."""

    texts: list[TextEvaluation]
    subjects: list[tuple[Subject, TextEvaluation]]
    choices: list[tuple[Path, list[ChoiceEvaluation]]]

    def document(self, request: Request, seconds: float) -> dict[str, Any]:
        """As `Found` says."""
        parts = document(self.texts, request, seconds)
        if self.subjects:
            parts |= subject_document(self.subjects, request)
        return parts | choice_document(self.choices, request) if self.choices else parts

    def views(self, request: Request, *, plot: bool) -> Iterator[View]:
        """As `Found` says."""
        yield from views(self.texts, request)
        yield from subject_views(self.subjects, request) if self.subjects else ()
        yield from choice_views(self.choices, request)
        if plot:
            yield plotted(request.files, [*self.texts, *(result for _, result in self.subjects)])


@dataclass(frozen=True)
class OnLines:
    """The results of the texts and by subject, for models that predict no tokens."""

    layout: Layout
    texts: list[TextComparison[Any, Any]]
    subjects: list[tuple[Subject, TextComparison[Any, Any]]]

    def document(self, request: Request, seconds: float) -> dict[str, Any]:
        """As `Found` says."""
        return line_document(self.layout, self.texts, self.subjects, request, seconds)

    def views(self, request: Request, *, plot: bool) -> Iterator[View]:
        """As `Found` says. There is no plot."""
        return line_views(self.layout, self.texts, self.subjects, request)


def evaluate_predictions(
    work: Work, loaded: list[LoadedModel], base: LoadedModel | None, *, context: int, limit: int | None, steps: Steps
) -> Found:
    """Perplexities, divergences and answers, with progress bars on a terminal. `limit` is the most chunks of a text."""
    from quantcli.quality.choices import evaluate_choices
    from quantcli.quality.evaluate import evaluate_all

    if work.texts or work.subjects:
        warn_beyond_training(min(loaded, key=trained), context)
    with text_progress() as advance:
        results = evaluate_all(
            loaded, work.named, context=context, chunks=limit, base=base, entropies=bool(work.subjects),
            by_quarter=[_called(subject) for subject in work.subjects if subject.by_quarter], steps=steps, advance=advance,
        )  # fmt: skip
    answered = []
    for file, questions in work.questions:
        with counted_progress("answering", "question") as count:
            answered.append((file, evaluate_choices(loaded, questions, base=base, steps=steps, advance=count)))
    own = len(work.texts)
    return Predictions(results[:own], list(zip(work.subjects, results[own:], strict=True)), answered)


def evaluate_lines(
    work: Work, loaded: list[LoadedModel], base: LoadedModel | None, *, context: int, limit: int | None, steps: Steps
) -> Found:
    """Embeddings or scores compared with the base's, with a progress bar on a terminal. At most `limit` lines of a text.

    Raises:
        ValueError: without a base.
    """
    from quantcli.quality.embeddings import evaluate_embeddings
    from quantcli.quality.scores import evaluate_scores

    if base is None:
        raise ValueError("lines are compared with a base")
    scored = loaded[0].model.classifier is not None
    evaluate: Callable[..., list[TextComparison[Any, Any]]] = evaluate_scores if scored else evaluate_embeddings
    texts = [(name, lines(text)) for name, text in work.named]
    with counted_progress("scoring" if scored else "embedding", "line") as count:
        results = evaluate(loaded, texts, base=base, context=context, limit=limit, steps=steps, advance=count)
    own = len(work.texts)
    subjects = list(zip(work.subjects, results[own:], strict=True))
    return OnLines(SCORES if scored else EMBEDDINGS, results[:own], subjects)
