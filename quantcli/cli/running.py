"""Running a model: how it is opened, and what is said meanwhile; how answers and speeds are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from quantcli.cli.compiling import announce_compiling
from quantcli.cli.output import binary_size, say_aside

if TYPE_CHECKING:
    from quantcli.runner.cache import Cache
    from quantcli.runner.load import LoadedModel
    from quantcli.runner.text.generate import Generation

_SHOWN_ESCAPED: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""Characters that steer a terminal: an answer may hold them, and their codes are shown instead."""


def open_model(
    file: Path,
    *,
    threads: int | None,
    weights: str | None = None,
    cache_type: str = "f16",
    arch_file: Path | None = None,
) -> LoadedModel:
    """Load a model to run on `threads` threads, its plain numbers as the type `weights`.

    `arch_file` describes its architecture in place of the package. Says so where kernels have to be compiled for it, now or
    later.

    Raises:
        UsageError: for a type that weights or caches cannot have.
    """
    from quantcli.kernels.jit import use_threads
    from quantcli.runner.cache import check_cache_type
    from quantcli.runner.load import load_model
    from quantcli.runner.quantize_on_load import packing_type

    check_cache_type(cache_type)
    use_threads(threads)
    announce_compiling()
    return load_model(file, None if weights is None else packing_type(weights), arch_file)


def warn_beyond_training(loaded: LoadedModel, context: int) -> None:
    """Say where a context is longer than the model has ever seen."""
    trained = loaded.model.sizes.context
    if context > trained:
        click.echo(f"warning: a context of {context} tokens is more than the {trained} the model was trained on", err=True)


def stream(pieces: Iterable[str]) -> None:
    """Show an answer on stdout as it comes, and end its line."""
    encoding = sys.stdout.encoding or "utf-8"
    steers = sys.stdout.isatty()
    for piece in pieces:
        shown = piece.translate(_SHOWN_ESCAPED) if steers else piece
        # A terminal that cannot show a character gets a question mark instead of an end to the answer. With colours click
        # leaves an answer for a file as it is.
        click.echo(shown.encode(encoding, "replace").decode(encoding), nl=False, color=True)
    click.echo()


def warn_of_full_context(answer: Generation) -> None:
    """Say where an answer ended because there was no more room."""
    if answer.stopped == "context":
        size = answer.session.cache.context
        click.echo(f"warning: stopped because the context of {size} tokens is full; --ctx makes room for more", err=True)


def show_statistics(loaded: LoadedModel, cache: Cache, load_seconds: float, answers: Sequence[Generation]) -> None:
    """One line on stderr, where that is a terminal: how fast it was, and what it took."""
    if not (answers and sys.stderr.isatty()):
        return
    read, read_seconds = sum(answer.prompt_read for answer in answers), sum(answer.prompt_seconds for answer in answers)
    # The first token of an answer comes with the prompt.
    timed, seconds = sum(max(0, len(answer.tokens) - 1) for answer in answers), sum(answer.seconds for answer in answers)
    parts = (
        f"load {load_seconds:.2f} s",
        f"prompt {read} tokens, {_rate(read, read_seconds)}",
        f"answer {sum(len(answer.tokens) for answer in answers)} tokens, {_rate(timed, seconds)}",
        f"memory {binary_size(loaded.model.weights_bytes)} weights + {binary_size(cache.nbytes)} context",
    )
    say_aside(" | ".join(parts))


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds if seconds else 0:.1f}/s"
