"""The results of `quantize eval --choices` as parts of a JSON document and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from quantcli.cli.evaluations import Request
from quantcli.cli.output import columns, heading
from quantcli.cli.text_tables import View
from quantcli.core.listing import counted

if TYPE_CHECKING:
    from quantcli.quality.choices import Accuracy, ChoiceEvaluation, Flips
    from quantcli.quality.statistics import Estimate

Results = Sequence[tuple[Path, Sequence["ChoiceEvaluation"]]]
"""Files of questions, and the evaluations of the base, if there is one, and of each model."""

_FLIPS: Final = ("flipped", "right to wrong", "wrong to right", "wrong to wrong")


def choice_document(results: Results, request: Request) -> dict[str, Any]:
    """The field of the JSON document: a row for each file of questions and each model, the base first."""
    return {
        "choices": [
            {
                "choices": str(choices),
                "path": str(file),
                "questions": found.questions,
                "accuracy": _accuracy(found.accuracy),
                "normalized_accuracy": _accuracy(found.normalized),
            }
            for choices, evaluations in results
            for file, found in zip(_files(request), evaluations, strict=True)
        ]
    }


def _files(request: Request) -> tuple[Path, ...]:
    return request.files if request.base is None else (request.base, *request.files)


def _accuracy(found: Accuracy) -> dict[str, Any]:
    facts: dict[str, Any] = {"value": found.value.value, "stderr": found.value.stderr}
    return facts if found.flips is None else facts | {"flipped": _flips(found.flips)}


def _flips(found: Flips) -> dict[str, Any]:
    return {
        "share": found.share.value,
        "stderr": found.share.stderr,
        "right_to_wrong": found.lost,
        "wrong_to_right": found.won,
        "wrong_to_wrong": found.exchanged,
    }


def choice_views(results: Results, request: Request) -> Iterator[View]:
    """A table for each file of questions. Flips are those of the length-normalized answers."""
    names = ("accuracy", "length-normalized", *(() if request.base is None else _FLIPS))
    for choices, evaluations in results:
        against = "" if request.base is None else f", flips of length-normalized answers against {request.base}"
        yield heading(f"{choices}: {counted(evaluations[0].questions, 'question')}{against}")
        table = columns("file", *names, right=names)
        for file, found in zip(_files(request), evaluations, strict=True):
            accuracies = (_share(found.accuracy.value), _share(found.normalized.value))
            table.add_row(str(file), *accuracies, *_changes(found.normalized.flips, request))
        yield table


def _changes(found: Flips | None, request: Request) -> tuple[str, ...]:
    if request.base is None:
        return ()
    if found is None:
        return ("",) * len(_FLIPS)
    return _share(found.share), str(found.lost), str(found.won), str(found.exchanged)


def _share(found: Estimate) -> str:
    return f"{found.value:.2%} ± {found.stderr:.2%}"
