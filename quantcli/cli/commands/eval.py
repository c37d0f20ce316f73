"""`quantize eval FILE...`: perplexity, accuracy, and KL divergence from a less quantized file of the same model.

Texts, the built-in ones by subject, and multiple-choice questions are evaluated in one run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli.choice_tables import choice_document, choice_views
from quantcli.cli.commands import described
from quantcli.cli.evaluating import named_texts, open_files, text_progress, trained
from quantcli.cli.evaluations import Request, document, views
from quantcli.cli.options import PATH, json_option, model_options, text_files_option
from quantcli.cli.output import chunk_progress, print_json, show
from quantcli.cli.running import warn_beyond_training
from quantcli.cli.subject_tables import subject_document, subject_views
from quantcli.cli.text_tables import View
from quantcli.core.errors import UsageError

if TYPE_CHECKING:
    from quantcli.quality.choices import ChoiceEvaluation
    from quantcli.quality.evaluate import TextEvaluation
    from quantcli.quality.questions import Question
    from quantcli.quality.subjects import Subject
    from quantcli.runner.load import LoadedModel


@described("eval")
@click.argument("files", metavar="FILE...", type=PATH, nargs=-1, required=True)
@text_files_option("Text file, UTF-8; - reads stdin; repeatable.", required=False)
@click.option("--subjects", is_flag=True, help="Evaluate the built-in texts: prose, law, code, mathematics, Chinese ...")
@click.option("--choices", type=PATH, multiple=True, metavar="F", help="Multiple-choice questions, JSON lines; repeatable.")
@click.option(
    "--ctx", "context", type=click.IntRange(min=4), default=512, show_default=True, metavar="N",
    help="Tokens per chunk; only the second half of each chunk is scored.",
)  # fmt: skip
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Maximum number of chunks per text. Default: all.")
@click.option("--base", type=PATH, metavar="FILE", help="Base model, such as F16: measure the KL divergence from it.")
@click.option("--plot", is_flag=True, help="Also draw size against KL divergence, or perplexity without --base.")
@model_options
@json_option()
def command(
    files: tuple[Path, ...],
    texts: tuple[Path, ...],
    subjects: bool,
    choices: tuple[Path, ...],
    context: int,
    chunks: int | None,
    base: Path | None,
    plot: bool,
    weights: str | None,
    arch_file: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Perplexity is computed as by llama-perplexity. With --base, also the Kullback-Leibler divergence from the base model
    in nats, how often both models have the same top token, and the RMS change of the right token's probability. Results are
    comparable only with the same text, --ctx and --chunks.

    Several files are evaluated together: the base runs once for all of them. Each file is compared with the first one,
    with 95 % confidence intervals. The differences are taken at each position, so that they show smaller differences than
    the standard errors of the files. --weights applies to all files, not to the base.

    --subjects evaluates twelve built-in texts. With --base, the subjects with the highest divergence relative to the
    entropy of the base's predictions come first. A long document is also shown by position in the context.

    --choices answers questions by the likelihood of their endings. A line has the keys of HellaSwag (ctx, endings, label)
    or MMLU (question, choices, answer); or prompt, endings and answer: endings continue the prompt as they are, and answer
    is the index of the right one. With --base, also how many answers are different.

    \b
    quantize eval model-Q4_K_M.gguf --text wiki.test.raw
    quantize eval model-Q4_K_M.gguf --text wiki.test.raw --chunks 50 --base model-F16.gguf
    quantize eval model-Q4_K_M.gguf model-IQ4_XS.gguf --text wiki.test.raw --text code.txt --base model-F16.gguf
    quantize eval model-F16.gguf --weights Q4_K --text wiki.test.raw --base model-F16.gguf
    quantize eval model-Q4_K_M.gguf --subjects --chunks 4 --base model-F16.gguf
    quantize eval model-Q4_K_M.gguf --choices hellaswag_val.jsonl --base model-F16.gguf
    """
    if not (texts or subjects or choices):
        raise UsageError("nothing to evaluate, expected --text, --subjects or --choices")
    if plot and as_json:
        raise UsageError("--plot and --json do not go together: a JSON document has no plot")
    if plot and not (texts or subjects):
        raise UsageError("--plot draws divergence or perplexity: it needs --text or --subjects")
    work = _read(texts, subjects, choices)
    started = time.perf_counter()
    loaded, compared = open_files(files, base, threads=threads, weights=weights, arch_file=arch_file)
    if texts or subjects:
        warn_beyond_training(min(loaded, key=trained), context)
    found = _evaluate(work, loaded, compared, context, chunks)
    request = Request(files, texts, base, context)
    if as_json:
        print_json(_document(found, request, time.perf_counter() - started))
    else:
        show(*_views(found, request), *([_plot(found, files)] if plot else []))


@dataclass(frozen=True)
class _Work:
    """What to evaluate: texts with what messages call each, built-in texts, and files of questions."""

    texts: list[tuple[str, str]]
    subjects: tuple[Subject, ...]
    questions: list[tuple[Path, list[Question]]]


@dataclass(frozen=True)
class _Found:
    """The results of the texts, by subject, and of the questions."""

    texts: list[TextEvaluation]
    subjects: list[tuple[Subject, TextEvaluation]]
    choices: list[tuple[Path, list[ChoiceEvaluation]]]


def _read(texts: Sequence[Path], subjects: bool, choices: Sequence[Path]) -> _Work:
    from quantcli.quality.questions import read_questions
    from quantcli.quality.subjects import SUBJECTS

    return _Work(named_texts(texts), SUBJECTS if subjects else (), [(file, read_questions(file)) for file in choices])


def _evaluate(work: _Work, loaded: list[LoadedModel], base: LoadedModel | None, context: int, chunks: int | None) -> _Found:
    from quantcli.quality.choices import evaluate_choices
    from quantcli.quality.evaluate import evaluate_all

    built_in = {f"the built-in text {subject.name!r}": subject for subject in work.subjects}
    with text_progress() as advance:
        results = evaluate_all(
            loaded, [*work.texts, *((name, subject.text) for name, subject in built_in.items())],
            context=context, chunks=chunks, base=base, entropies=bool(built_in),
            by_quarter=[name for name, subject in built_in.items() if subject.by_quarter], advance=advance,
        )  # fmt: skip
    answered = []
    for file, questions in work.questions:
        with chunk_progress("answering", unit="question") as bar:

            def answer(done: int, total: int, bar: Any = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            answered.append((file, evaluate_choices(loaded, questions, base=base, advance=answer)))
    own = len(work.texts)
    return _Found(results[:own], list(zip(work.subjects, results[own:], strict=True)), answered)


def _document(found: _Found, request: Request, seconds: float) -> dict[str, Any]:
    parts = document(found.texts, request, seconds)
    if found.subjects:
        parts |= subject_document(found.subjects, request)
    return parts | choice_document(found.choices, request) if found.choices else parts


def _views(found: _Found, request: Request) -> Iterator[View]:
    yield from views(found.texts, request)
    yield from subject_views(found.subjects, request) if found.subjects else ()
    yield from choice_views(found.choices, request)


def _plot(found: _Found, files: Sequence[Path]) -> View:
    from quantcli.cli.terminal_plot import TerminalPlot
    from quantcli.formats.gguf.reader import open_gguf
    from quantcli.quality.report.files import labels
    from quantcli.quality.report.prices import prices

    results = [*found.texts, *(result for _, result in found.subjects)]
    sizes = []
    for path in files:
        with open_gguf(path) as file:
            sizes.append(file.file_bytes)
    return TerminalPlot(prices(labels(files), sizes, results))
