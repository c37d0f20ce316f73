"""Common parts of commands that run a model: loads it, and prints warnings, answers and speeds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from quantcli.cli.compiling import announce_compiling
from quantcli.cli.debugging import is_debugging
from quantcli.cli.local_models import local_model
from quantcli.cli.mapped_files import report_truncation
from quantcli.cli.output import say_aside
from quantcli.core.display import binary_size
from quantcli.core.listing import counted

if TYPE_CHECKING:
    from quantcli.quality.imatrix import Collector
    from quantcli.runner.cache import Cache
    from quantcli.runner.load import LoadedModel
    from quantcli.runner.text.generate import Generation

_SHOWN_ESCAPED: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""Control characters, which are shown as escapes where an answer has them."""


def open_model(
    file: Path,
    *,
    threads: int | None,
    weights: str | None = None,
    cache_type: str = "f16",
    arch_file: Path | None = None,
) -> LoadedModel:
    """Load a model to run on `threads` threads, with its float weights quantized to the type `weights`: a GGUF file, a
    checkpoint as it is, or one of the hub (`local_model`).

    `arch_file` replaces the built-in architecture file. Compilation of kernels is announced from now on. With `--debug`,
    the first activations that are not finite are an error that names their tensor.

    Raises:
        UsageError: for an invalid type of weights or KV cache.
    """
    from quantcli.conversion.locate import locate_path
    from quantcli.conversion.source import is_checkpoint, open_source
    from quantcli.kernels.threads import use_threads
    from quantcli.quality.source_file import SourceFile
    from quantcli.runner.cache import check_cache_type
    from quantcli.runner.finite_inputs import FiniteInputs
    from quantcli.runner.load import load_model, prepare_model
    from quantcli.runner.quantize_on_load import packing_type

    check_cache_type(cache_type)
    packing = None if weights is None else packing_type(weights)
    path = local_model(file)
    use_threads(threads)
    announce_compiling()
    report_truncation(path)
    observer = FiniteInputs(path) if is_debugging() else None
    located = locate_path(path)
    if is_checkpoint(path):
        with open_source(located.place, model_id=located.model_id, architecture_file=arch_file) as source:
            return prepare_model(SourceFile.of(source), packing, observer, architecture_file=arch_file)
    return load_model(path, packing, arch_file, observer)


def open_observed(
    model: Path, output: Path, *, threads: int | None, weights: str | None, arch_file: Path | None
) -> tuple[LoadedModel, Collector, str]:
    """Load a GGUF file, or a checkpoint as it is, with a collector of an importance matrix. Otherwise as `open_model`. The
    string tells models apart.

    Raises:
        OutputError: if `output` is one of the model's files.
    """
    from quantcli.conversion.locate import locate
    from quantcli.conversion.source import open_source
    from quantcli.formats.output_file import refuse_overwriting
    from quantcli.kernels.threads import use_threads
    from quantcli.quality.imatrix import Collector
    from quantcli.quality.source_file import SourceFile, identity
    from quantcli.runner.load import prepare_model
    from quantcli.runner.quantize_on_load import packing_type

    use_threads(threads)
    announce_compiling()
    report_truncation(model)
    located = locate(model)
    packing = None if weights is None else packing_type(weights)
    with open_source(located.place, model_id=located.model_id, architecture_file=arch_file) as source:
        refuse_overwriting(source.paths, [output])
        file = SourceFile.of(source)
        collector = Collector.of(file)
        return prepare_model(file, packing, collector, architecture_file=arch_file), collector, identity(file)


def warn_beyond_training(loaded: LoadedModel, context: int) -> None:
    """Warn of a context longer than the trained context length."""
    trained = loaded.model.sizes.context
    if context > trained:
        click.echo(f"warning: a context of {context} tokens is longer than the trained context length, {trained}", err=True)


def stream(pieces: Iterable[str]) -> None:
    """Stream an answer to stdout, followed by a newline."""
    encoding = sys.stdout.encoding or "utf-8"
    steers = sys.stdout.isatty()
    for piece in pieces:
        shown = piece.translate(_SHOWN_ESCAPED) if steers else piece
        # A character that the encoding lacks becomes a question mark. `color=True` keeps click from removing escape codes
        # where the answer goes to a file.
        click.echo(shown.encode(encoding, "replace").decode(encoding), nl=False, color=True)
    click.echo()


def warn_of_full_context(answer: Generation) -> None:
    """Warn of an answer that ended because the context was full."""
    if answer.stopped == "context":
        size = answer.session.cache.context
        click.echo(f"warning: generation stopped: the context of {size} tokens is full; --ctx sets its size", err=True)


def show_statistics(loaded: LoadedModel, cache: Cache, load_seconds: float, answers: Sequence[Generation]) -> None:
    """Print speed and memory use on one line to stderr, if that is a terminal."""
    if not (answers and sys.stderr.isatty()):
        return
    read, read_seconds = sum(answer.prompt_read for answer in answers), sum(answer.prompt_seconds for answer in answers)
    # The first token of an answer counts as prompt processing.
    timed, seconds = sum(max(0, len(answer.tokens) - 1) for answer in answers), sum(answer.seconds for answer in answers)
    parts = (
        f"load {load_seconds:.2f} s",
        f"prompt {counted(read, 'token')}, {_rate(read, read_seconds)}",
        f"generated {counted(sum(len(answer.tokens) for answer in answers), 'token')}, {_rate(timed, seconds)}",
        f"memory {binary_size(loaded.model.weights_bytes)} weights + {binary_size(cache.nbytes)} cache",
    )
    say_aside(" | ".join(parts))


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds if seconds else 0:.1f}/s"
