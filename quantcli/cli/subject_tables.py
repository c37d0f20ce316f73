"""The results of `quantize eval --subjects` as parts of a JSON document and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from quantcli.cli.evaluations import Request, difference_figures, difference_rows, figures
from quantcli.cli.output import columns, heading
from quantcli.cli.text_tables import View

if TYPE_CHECKING:
    from quantcli.quality.evaluate import TextEvaluation
    from quantcli.quality.statistics import Estimate, Evaluation
    from quantcli.quality.subjects import Subject

Results = Sequence[tuple["Subject", "TextEvaluation"]]

_COMPARED: Final = ("KL divergence", "same top token", "base entropy", "KL / entropy")


def subject_document(results: Results, request: Request) -> dict[str, Any]:
    """The fields of the JSON document: a row for each subject and file, and for each difference from the first file."""
    return {
        "subjects": [
            {"subject": subject.name} | _row(file, result, number)
            for subject, result in results
            for number, file in enumerate(request.files)
        ],
        "subject_differences": difference_rows(
            "subject", [subject.name for subject, _ in results], [result for _, result in results], request,
            difference_figures,
        ),
    }  # fmt: skip


def _row(file: Path, result: TextEvaluation, number: int) -> dict[str, Any]:
    row = figures(file, result.evaluations[number]) | _entropy(result.evaluations[number])
    if not result.quarters:
        return row
    quarters = [figures(file, quarter) | _entropy(quarter) for quarter in result.quarters[number]]
    return row | {"quarters": [{key: value for key, value in each.items() if key != "path"} for each in quarters]}


def _entropy(found: Evaluation) -> dict[str, Any]:
    beside = found.divergence
    if beside is None or beside.base_entropy is None or beside.relative is None:
        return {}
    return {"base_entropy": _estimate(beside.base_entropy), "kl_divergence_relative": _estimate(beside.relative)}


def _estimate(found: Estimate) -> dict[str, float]:
    return {"mean": found.value, "stderr": found.stderr}


def subject_views(results: Results, request: Request) -> Iterator[View]:
    """Two tables for each file: by subject, those that suffered most first; and the long document by position."""
    against = "" if request.base is None else f", divergence from {request.base}"
    for number, file in enumerate(request.files):
        yield heading(f"{file} by subject, chunks of {request.context} tokens{against}")
        yield _table([(subject.title, result.evaluations[number]) for subject, result in results], "subject")
        for subject, result in results:
            if result.quarters:
                titles = _places(request.context, len(result.quarters[number]))
                yield heading(f"{file} by position in the context, {subject.title}")
                yield _table(list(zip(titles, result.quarters[number], strict=True)), "after token", ordered=True)


def _places(context: int, parts: int) -> list[str]:
    """The numbers of the tokens in each part of a context, as `evaluate_all` divides it."""
    starts = [-(-context * part // parts) for part in range(parts)]
    return [f"{start} to {stop - 1}" for start, stop in zip(starts, [*starts[1:], context - 1], strict=True)]


def _table(rows: Sequence[tuple[str, Evaluation]], first: str, *, ordered: bool = False) -> View:
    compared = rows[0][1].divergence is not None
    names = ("tokens", "perplexity", *(_COMPARED if compared else ()))
    table = columns(first, *names, right=names)
    for title, found in rows if ordered else sorted(rows, key=_suffering, reverse=True):
        table.add_row(title, f"{found.tokens:,}", f"{found.perplexity:.4f} ± {found.stderr:.4f}", *_cells(found))
    return table


def _suffering(row: tuple[str, Evaluation]) -> float:
    """The divergence relative to the base's entropy. Without a base all are equal: the order stays."""
    beside = row[1].divergence
    return 0.0 if beside is None or beside.relative is None else beside.relative.value


def _cells(found: Evaluation) -> tuple[str, ...]:
    beside = found.divergence
    if beside is None or beside.base_entropy is None or beside.relative is None:
        return ()
    return (
        f"{beside.mean:.6f} ± {beside.stderr:.6f}",
        f"{beside.same_top:.2%} ± {beside.same_top_stderr:.2%}",
        f"{beside.base_entropy.value:.3f}",
        f"{beside.relative.value:.3%} ± {beside.relative.stderr:.3%}",
    )
