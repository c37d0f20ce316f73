"""Evaluates files on texts, for the commands that do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quantcli.cli.mapped_files import report_truncation
from quantcli.cli.output import chunk_progress
from quantcli.cli.running import open_model, warn_beyond_training
from quantcli.cli.texts import read_text
from quantcli.core.errors import UsageError

if TYPE_CHECKING:
    from quantcli.quality.evaluate import TextEvaluation
    from quantcli.runner.load import LoadedModel

STDIN: Final = Path("-")


def named_texts(texts: Sequence[Path]) -> list[tuple[str, str]]:
    """The texts, with what messages call each."""
    if texts.count(STDIN) > 1:
        raise UsageError("--text - is given twice, and stdin can be read once")
    contents = [read_text(None if text == STDIN else text, "the text") for text in texts]
    names = ["the text"] if len(texts) == 1 else [f"{text}: the text" for text in texts]
    return list(zip(names, contents, strict=True))


def evaluate_files(
    files: Sequence[Path],
    contents: Sequence[tuple[str, str]],
    base: Path | None,
    *,
    context: int,
    chunks: int | None,
    threads: int | None,
    arch_file: Path | None = None,
) -> list[TextEvaluation]:
    """Load the files and the base, and evaluate them on the texts of `named_texts`, with a progress bar on a terminal."""
    loaded, compared = open_files(files, base, threads=threads, arch_file=arch_file)
    warn_beyond_training(min(loaded, key=trained), context)
    from quantcli.quality.evaluate import evaluate_all

    with text_progress() as advance:
        return evaluate_all(loaded, contents, context=context, chunks=chunks, base=compared, advance=advance)


def open_files(
    files: Sequence[Path],
    base: Path | None,
    *,
    threads: int | None,
    weights: str | None = None,
    arch_file: Path | None = None,
) -> tuple[list[LoadedModel], LoadedModel | None]:
    """Load files and the base that they are compared with, after a check that it is the same model."""
    if base is not None:
        check_base(files, base)
    loaded = [open_model(file, threads=threads, weights=weights, arch_file=arch_file) for file in files]
    compared = None if base is None else open_model(base, threads=threads, arch_file=arch_file)
    report_truncation(*files, *([] if base is None else [base]))
    return loaded, compared


def check_base(files: Sequence[Path], base: Path) -> None:
    """Check from the headers of the files that the base is the same model. Weights are not read."""
    from quantcli.formats.gguf.reader import open_gguf
    from quantcli.quality.reference import check_reference, warn_of_quantized_reference

    with open_gguf(base) as reference:
        for file in files:
            with open_gguf(file) as model:
                check_reference(model, reference)
        warn_of_quantized_reference(reference)


def trained(loaded: LoadedModel) -> int:
    """The context length that a model was trained on."""
    return loaded.model.sizes.context


@contextmanager
def text_progress() -> Iterator[Callable[[int, int, float], None]]:
    """A progress bar of chunks on stderr, only on a terminal, with the perplexity so far."""
    with chunk_progress("evaluating") as bar:

        def advance(done: int, total: int, perplexity: float) -> None:
            bar.total = total
            bar.set_postfix_str(f"perplexity {perplexity:.4f}", refresh=False)
            bar.update(done - bar.n)

        yield advance


@contextmanager
def counted_progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of `unit`s on stderr, only on a terminal: a function of the number done and that of all."""
    with chunk_progress(what, unit=unit) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance
