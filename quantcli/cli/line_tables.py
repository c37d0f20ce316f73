"""The results of `quantize eval` for embedding models, classifiers and rerankers as a JSON document and as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from quantcli.cli.evaluations import Request, Row, difference_rows, interval, result_rows, shown_interval
from quantcli.cli.output import columns, heading
from quantcli.cli.text_tables import View
from quantcli.core.listing import counted

if TYPE_CHECKING:
    from quantcli.quality.embeddings import EmbeddingEvaluation
    from quantcli.quality.lines import TextComparison
    from quantcli.quality.scores import ScoreEvaluation
    from quantcli.quality.statistics import Estimate
    from quantcli.quality.subjects import Subject

Results = Sequence["TextComparison[Any, Any]"]
BySubject = Sequence[tuple["Subject", "TextComparison[Any, Any]"]]


@dataclass(frozen=True)
class Layout:
    """How the evaluations of a kind of model are shown.

    what          what is compared
    measured      the columns of the table, and `cells` those of an evaluation
    figures       the fields of the document besides the path
    facts         labels and texts where there is one evaluation
    suffering     by what subjects are sorted, the lowest first
    differences   the fields of a difference, each with its column
    """

    what: str
    measured: tuple[str, ...]
    cells: Callable[[Any], tuple[str, ...]]
    figures: Callable[[Any], Row]
    facts: Callable[[Any], tuple[tuple[str, str], ...]]
    suffering: Callable[[Any], float]
    differences: tuple[tuple[str, str], ...]

    def row(self, file: Path, found: Any) -> Row:
        """An evaluation as fields of a document."""
        return {"path": str(file), "lines": found.lines} | self.figures(found)

    def difference(self, found: Any) -> Row:
        """A difference as fields of a document."""
        return {name: interval(getattr(found, name)) for name, _ in self.differences}


def _embedding_cells(found: EmbeddingEvaluation) -> tuple[str, ...]:
    tail = (f"{value:.6f}" for value in (found.p5, found.p1, found.min))
    return _shown(found.cosine), *tail, _percent(found.same_nearest), _shown(found.rank_correlation)


def _embedding_figures(found: EmbeddingEvaluation) -> Row:
    return {
        "cosine": _estimate(found.cosine) | {"p5": found.p5, "p1": found.p1, "min": found.min},
        "same_nearest": found.same_nearest.value,
        "same_nearest_stderr": found.same_nearest.stderr,
        "rank_correlation": _estimate(found.rank_correlation),
    }


def _embedding_facts(found: EmbeddingEvaluation) -> tuple[tuple[str, str], ...]:
    tail = f"5% {found.p5:.6f}, 1% {found.p1:.6f}, minimum {found.min:.6f}"
    return (
        ("Cosine", f"mean {_shown(found.cosine)}, {tail}"),
        ("Same nearest", f"{_percent(found.same_nearest)} of lines have the same nearest other line"),
        ("Rank correlation", f"{_shown(found.rank_correlation)}, Spearman's, of the similarities to other lines"),
    )


EMBEDDINGS: Final = Layout(
    what="embeddings",
    measured=("cosine", "5%", "1%", "minimum", "same nearest", "rank correlation"),
    cells=_embedding_cells,
    figures=_embedding_figures,
    facts=_embedding_facts,
    suffering=lambda found: float(found.cosine.value),
    differences=(("cosine", "cosine"), ("same_nearest", "same nearest"), ("rank_correlation", "rank correlation")),
)


def _score_cells(found: ScoreEvaluation) -> tuple[str, ...]:
    change, ranks = _shown(found.rms_change), _shown(found.rank_correlation)
    return str(found.candidates), change, f"{found.deviation:.4f}", _percent(found.same_best), ranks


def _score_figures(found: ScoreEvaluation) -> Row:
    return {
        "scores": found.candidates,
        "rms_change": _estimate(found.rms_change),
        "base_deviation": found.deviation,
        "same_best": found.same_best.value,
        "same_best_stderr": found.same_best.stderr,
        "rank_correlation": _estimate(found.rank_correlation),
    }


def _score_facts(found: ScoreEvaluation) -> tuple[tuple[str, str], ...]:
    what = f"{counted(found.candidates, 'score')} of a line"
    return (
        ("RMS change", f"{_shown(found.rms_change)}, where the base's scores have a deviation of {found.deviation:.4f}"),
        ("Same best", f"{_percent(found.same_best)} of lines have the same highest score"),
        ("Rank correlation", f"{_shown(found.rank_correlation)}, Spearman's, of the {what}"),
    )


SCORES: Final = Layout(
    what="scores",
    measured=("scores", "RMS change", "base deviation", "same best", "rank correlation"),
    cells=_score_cells,
    figures=_score_figures,
    facts=_score_facts,
    suffering=lambda found: float(found.rank_correlation.value),
    differences=(("rms_change", "RMS change"), ("same_best", "same best"), ("rank_correlation", "rank correlation")),
)


def line_document(layout: Layout, results: Results, subjects: BySubject, request: Request, seconds: float) -> Row:
    """The JSON document: flat for one file and one text, else with lists of results and differences; and by subject."""
    parts: Row = {"base": str(request.base), "context": request.context, "seconds": seconds}
    if request.single:
        parts |= layout.row(request.files[0], results[0].evaluations[0])
    else:
        parts["results"] = result_rows("text", request.texts, results, request, layout.row)
        parts["differences"] = difference_rows("text", request.texts, results, request, layout.difference)
    if subjects:
        names, found = [subject.name for subject, _ in subjects], [result for _, result in subjects]
        parts["subjects"] = result_rows("subject", names, found, request, layout.row)
        parts["subject_differences"] = difference_rows("subject", names, found, request, layout.difference)
    return parts


def line_views(layout: Layout, results: Results, subjects: BySubject, request: Request) -> Iterator[View]:
    """The tables: facts for one file and one text, else a row per file and text; and by subject, the worst first."""
    against = f"{layout.what} compared with {request.base}"
    if request.single:
        yield _facts(layout, results[0].evaluations[0], request)
    else:
        for text, result in zip(request.texts, results, strict=True):
            yield heading(f"{text}: {counted(result.evaluations[0].lines, 'different line')}, {against}")
            table = columns("file", *layout.measured, right=layout.measured)
            for file, found in zip(request.files, result.evaluations, strict=True):
                table.add_row(str(file), *layout.cells(found))
            yield table
            if result.differences:
                yield heading(f"Difference from {request.files[0]}, with 95 % confidence intervals")
                yield _differences(layout, result, request)
    for number, file in enumerate(request.files if subjects else ()):
        yield heading(f"{file} by subject, {against}")
        table = columns("subject", "lines", *layout.measured, right=("lines", *layout.measured))
        for title, found in sorted(
            ((subject.title, result.evaluations[number]) for subject, result in subjects),
            key=lambda row: layout.suffering(row[1]),
        ):
            table.add_row(title, f"{found.lines:,}", *layout.cells(found))
        yield table


def _facts(layout: Layout, found: Any, request: Request) -> View:
    facts = columns("", "")
    for label, text in layout.facts(found):
        facts.add_row(label, text)
    facts.add_row("Compared", f"{counted(found.lines, 'different line')}, with {request.base}")
    return facts


def _differences(layout: Layout, result: TextComparison[Any, Any], request: Request) -> View:
    names = [title for _, title in layout.differences]
    table = columns("file", *names, right=tuple(names))
    for file, found in zip(request.files[1:], result.differences, strict=True):
        table.add_row(str(file), *(shown_interval(getattr(found, name)) for name, _ in layout.differences))
    return table


def _estimate(found: Estimate) -> Row:
    return {"mean": found.value, "stderr": found.stderr}


def _shown(found: Estimate) -> str:
    return f"{found.value:.6f} ± {found.stderr:.6f}"


def _percent(found: Estimate) -> str:
    return f"{found.value:.2%} ± {found.stderr:.2%}"
