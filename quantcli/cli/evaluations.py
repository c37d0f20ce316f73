"""The results of `quantize eval` as a JSON document and as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from quantcli.cli.output import columns, heading
from quantcli.cli.text_tables import View
from quantcli.core.listing import counted

if TYPE_CHECKING:
    from quantcli.quality.evaluate import TextEvaluation
    from quantcli.quality.statistics import Difference, Divergence, Estimate, Evaluation


E_co = TypeVar("E_co", covariant=True)
D_co = TypeVar("D_co", covariant=True)

E = TypeVar("E")
D = TypeVar("D")

Row = dict[str, Any]


class Compared(Protocol[E_co, D_co]):
    """The evaluations of several files, and how each but the first differs from the first."""

    @property
    def evaluations(self) -> Sequence[E_co]:
        """One per file."""

    @property
    def differences(self) -> Sequence[D_co]:
        """One per file but the first."""


@dataclass(frozen=True)
class Request:
    """What was evaluated."""

    files: tuple[Path, ...]
    texts: tuple[Path, ...]
    base: Path | None
    context: int

    @property
    def single(self) -> bool:
        """Whether there is one file and one text."""
        return len(self.files) == len(self.texts) == 1


def document(results: Sequence[TextEvaluation], request: Request, seconds: float) -> dict[str, Any]:
    """The JSON document: flat for one file and one text, else with lists of results and differences."""
    if request.single:
        found = results[0].evaluations[0]
        facts = _scores(request.files[0], found) | {"context": request.context, "seconds": seconds}
        return facts if found.divergence is None else facts | {"base": str(request.base)} | _divergence(found.divergence)
    parts: dict[str, Any] = {} if request.base is None else {"base": str(request.base)}
    return parts | {
        "context": request.context,
        "seconds": seconds,
        "results": result_rows("text", request.texts, results, request, figures),
        "differences": difference_rows("text", request.texts, results, request, difference_figures),
    }


def result_rows(
    kind: str, names: Iterable[object], results: Iterable[Compared[E, D]], request: Request, show: Callable[[Path, E], Row]
) -> list[Row]:
    """The rows of a document: one for each result, whose name is the field `kind`, and each file."""
    return [
        {kind: str(name)} | show(file, found)
        for name, result in zip(names, results, strict=True)
        for file, found in zip(request.files, result.evaluations, strict=True)
    ]


def difference_rows(
    kind: str, names: Iterable[object], results: Iterable[Compared[E, D]], request: Request, show: Callable[[D], Row]
) -> list[Row]:
    """The rows of a document: one for each result and each file but the first, which it is compared with."""
    return [
        {kind: str(name), "first": str(request.files[0]), "path": str(file)} | show(found)
        for name, result in zip(names, results, strict=True)
        for file, found in zip(request.files[1:], result.differences, strict=True)
    ]


def figures(file: Path, found: Evaluation) -> dict[str, Any]:
    """What was measured of a file on a text, as fields of a document."""
    return _scores(file, found) | ({} if found.divergence is None else _divergence(found.divergence))


def _scores(file: Path, found: Evaluation) -> dict[str, Any]:
    return {
        "path": str(file),
        "perplexity": found.perplexity,
        "stderr": found.stderr,
        "tokens": found.tokens,
        "chunks": found.chunks,
    }


def _divergence(found: Divergence) -> dict[str, Any]:
    return {
        "base_perplexity": found.base_perplexity,
        "base_stderr": found.base_stderr,
        "log_perplexity_ratio": {"mean": found.log_ratio.value, "stderr": found.log_ratio.stderr},
        "kl_divergence": {
            "mean": found.mean,
            "stderr": found.stderr,
            "median": found.median,
            "p99": found.p99,
            "p999": found.p999,
            "max": found.max,
        },
        "same_top": found.same_top,
        "same_top_stderr": found.same_top_stderr,
        "rms_probability_change": {"value": found.rms_change.value, "stderr": found.rms_change.stderr},
    }


def difference_figures(found: Difference) -> dict[str, Any]:
    """How a file differs from the first one on a text, as fields of a document."""
    facts = {"log_perplexity": interval(found.log_perplexity)}
    return facts if found.divergence is None else facts | {"kl_divergence": interval(found.divergence)}


def interval(found: Estimate) -> Row:
    """A difference, with its 95 % confidence interval."""
    return {"mean": found.value, "stderr": found.stderr, "interval_95": list(found.interval)}


def views(results: Sequence[TextEvaluation], request: Request) -> Iterator[View]:
    """The tables: facts for one file and one text, else a row per file and text."""
    if request.single:
        yield _facts(results[0].evaluations[0], request.context)
        return
    for text, result in zip(request.texts, results, strict=True):
        first = result.evaluations[0]
        against = "" if request.base is None else f", divergence from {request.base}"
        yield heading(f"{text}: {_scored(first, request.context)}{against}")
        yield _table(result, request)
        if result.differences:
            yield heading(f"Difference from {request.files[0]}, with 95 % confidence intervals")
            yield _differences(result, request)


def _scored(found: Evaluation, context: int) -> str:
    return f"{counted(found.tokens, 'token')} in {counted(found.chunks, 'chunk')} of {context}"


def _facts(found: Evaluation, context: int) -> View:
    facts = columns("", "")
    facts.add_row("Perplexity", f"{found.perplexity:.4f} ± {found.stderr:.4f}")
    if (beside := found.divergence) is not None:
        change = found.perplexity / beside.base_perplexity - 1
        facts.add_row("Base perplexity", f"{beside.base_perplexity:.4f}, a change of {change:+.3%}")
        facts.add_row(
            "KL divergence",
            f"mean {beside.mean:.6f}, median {beside.median:.6f}, 99% {beside.p99:.6f}, maximum {beside.max:.6f}",
        )
        facts.add_row("KL 99.9%", f"{beside.p999:.6f}")
        facts.add_row("Same top token", f"{beside.same_top:.3%}")
        facts.add_row(
            "Standard errors", f"mean KL divergence {beside.stderr:.6f}, same top token {beside.same_top_stderr:.3%}"
        )
        facts.add_row("RMS Δp", f"{_percent(beside.rms_change)}, the change of the right token's probability")
        facts.add_row("Log ratio", f"{beside.log_ratio.value:+.6f} ± {beside.log_ratio.stderr:.6f}, of the perplexities")
    facts.add_row("Scored", _scored(found, context))
    return facts


_MEASURED: Final = ("KL divergence", "median", "99%", "99.9%", "maximum", "same top token", "RMS Δp")


def _table(result: TextEvaluation, request: Request) -> View:
    measured = () if request.base is None else _MEASURED
    table = columns("file", "perplexity", *measured, right=("perplexity", *measured))
    for file, found in zip(request.files, result.evaluations, strict=True):
        cells = () if found.divergence is None else _cells(found.divergence)
        table.add_row(str(file), f"{found.perplexity:.4f} ± {found.stderr:.4f}", *cells)
    return table


def _cells(found: Divergence) -> tuple[str, ...]:
    places = (found.median, found.p99, found.p999, found.max)
    return (
        f"{found.mean:.6f} ± {found.stderr:.6f}",
        *(f"{value:.6f}" for value in places),
        f"{found.same_top:.3%} ± {found.same_top_stderr:.3%}",
        _percent(found.rms_change),
    )


def _differences(result: TextEvaluation, request: Request) -> View:
    names = ("KL divergence", "log perplexity") if request.base is not None else ("log perplexity",)
    table = columns("file", *names, right=names)
    for file, found in zip(request.files[1:], result.differences, strict=True):
        values = [value for value in (found.divergence, found.log_perplexity) if value is not None]
        table.add_row(str(file), *map(shown_interval, values))
    return table


def shown_interval(found: Estimate) -> str:
    """The same for a table."""
    low, high = found.interval
    return f"{found.value:+.6f} [{low:+.6f}, {high:+.6f}]"


def _percent(found: Estimate) -> str:
    return f"{found.value:.3%} ± {found.stderr:.3%}"
