"""The word `auto` in place of a calibration text or an importance matrix: the built-in text, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from quantcli.cli.imatrix_description import expert_notes
from quantcli.cli.output import say
from quantcli.cli.texts import read_text
from quantcli.core.errors import UsageError
from quantcli.core.listing import counted, listed

if TYPE_CHECKING:
    from quantcli.conversion.convert import RequestFields
    from quantcli.conversion.source import Source
    from quantcli.formats.imatrix import Imatrix
    from quantcli.formats.imatrix_sums import ImatrixSums

AUTO: Final = "auto"

CONTEXT: Final = 512
"""Tokens per chunk, the default of `quantize imatrix` and of llama-imatrix."""

TOKENS: Final = 100 * CONTEXT
"""Tokens of the built-in text that `--imatrix auto` runs. docs/calibration.md has what more and fewer would change."""

FileOrAuto = Path | Literal["auto"]

Begin = Callable[[int], Callable[[int], Any]]


class FileOrAutoType(click.Path):
    """The type of an option that takes a file or the word `auto`. A file of this name is given as `./auto`."""

    def __init__(self, **more: Any) -> None:
        super().__init__(path_type=Path, **more)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word or the path."""
        return AUTO if value == AUTO else super().convert(value, param, ctx)


def name_of(text: FileOrAuto) -> str:
    """The name by which an importance matrix records a text: its path, or the name of the built-in text."""
    from quantcli.quality.calibration_text import CALIBRATION

    return CALIBRATION if text == AUTO else str(text)


def named_text(text: FileOrAuto) -> tuple[str, str]:
    """The name and the content of a text.

    Raises:
        UsageError: for a file that is not UTF-8.
    """
    from quantcli.quality.calibration_text import calibration_text

    return name_of(text), read_text(text, "the text") if isinstance(text, Path) else calibration_text().text


def calibration(request: RequestFields, threads: int | None, begin: Begin) -> Callable[[Source], Imatrix]:
    """The function that `convert` calls to collect the importance matrix of an open model from the built-in text.

    `begin` is called with the number of chunks of text. What it returns is called with 1 after each.

    Raises:
        UsageError: if the request has `remote`: the model would be read from the hub several times.
    """
    if request.get("remote"):
        raise UsageError("--imatrix auto runs the model, which --remote does not download", hint="leave out --remote")
    return partial(_collected, threads=threads, arch_file=request.get("architecture_file"), begin=begin)


def announce_calibration() -> None:
    """Say what a dry run does not do."""
    from quantcli.quality.calibration_text import CALIBRATION

    say(f"importance matrix: would be collected from {CALIBRATION}, at most {TOKENS:,} tokens", err=True)


def _collected(source: Source, *, threads: int | None, arch_file: Path | None, begin: Begin) -> Imatrix:
    """Run the model on the built-in text, and say what was used.

    Raises:
        UnsupportedError, ModelError, GenerationError: if the model cannot be run.
        ValueRangeError: if all values of a tensor are zero.
    """
    from quantcli.cli.mapped_files import report_truncation
    from quantcli.kernels.threads import use_threads
    from quantcli.quality.calibration_text import calibration_text
    from quantcli.quality.imatrix import Collector, collect, cut_texts
    from quantcli.quality.source_file import SourceFile
    from quantcli.runner.load import prepare_model

    use_threads(threads)
    report_truncation(*source.paths)
    file, text = SourceFile.of(source), calibration_text()
    collector = Collector.of(file)
    loaded = prepare_model(file, observer=collector, architecture_file=arch_file)
    context = min(CONTEXT, loaded.model.sizes.context)
    chunks = cut_texts(loaded.tokenizer, [(text.name, text.text)], context, TOKENS // context)
    advance = begin(len(chunks))
    sums = collect(loaded.model, collector, chunks, [text.name], advance=lambda done, so_far: advance(1))
    _report(sums)
    return sums.means(AUTO)


def _report(sums: ImatrixSums) -> None:
    tokens, chunks = sums.chunks * sums.chunk_size, counted(sums.chunks, "chunk")
    texts = listed(sums.datasets)
    say(f"importance matrix: collected from {texts}, {tokens:,} tokens in {chunks} of {sums.chunk_size}", err=True)
    for label, note in expert_notes(sums):
        say(f"{label}: {note}", err=True)
