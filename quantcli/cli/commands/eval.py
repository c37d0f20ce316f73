"""`quantize eval FILE... --text F`: perplexity, and KL divergence from a less quantized file of the same model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from quantcli.cli.commands import described
from quantcli.cli.evaluations import Request, document, views
from quantcli.cli.mapped_files import report_truncation
from quantcli.cli.options import PATH, json_option, model_options, text_files_option
from quantcli.cli.output import chunk_progress, print_json, show
from quantcli.cli.running import open_model, warn_beyond_training
from quantcli.cli.texts import read_text
from quantcli.core.errors import UsageError

if TYPE_CHECKING:
    from quantcli.runner.load import LoadedModel

STDIN: Final = Path("-")


@described("eval")
@click.argument("files", metavar="FILE...", type=PATH, nargs=-1, required=True)
@text_files_option("Text file, UTF-8; - reads stdin; repeatable.")
@click.option(
    "--ctx", "context", type=click.IntRange(min=4), default=512, show_default=True, metavar="N",
    help="Tokens per chunk; only the second half of each chunk is scored.",
)  # fmt: skip
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Maximum number of chunks per text. Default: all.")
@click.option("--base", type=PATH, metavar="FILE", help="Base model, such as F16: measure the KL divergence from it.")
@model_options
@json_option()
def command(
    files: tuple[Path, ...],
    texts: tuple[Path, ...],
    context: int,
    chunks: int | None,
    base: Path | None,
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

    \b
    quantize eval model-Q4_K_M.gguf --text wiki.test.raw
    quantize eval model-Q4_K_M.gguf --text wiki.test.raw --chunks 50 --base model-F16.gguf
    quantize eval model-Q4_K_M.gguf model-IQ4_XS.gguf --text wiki.test.raw --text code.txt --base model-F16.gguf
    quantize eval model-F16.gguf --weights Q4_K --text wiki.test.raw --base model-F16.gguf
    """
    contents = _contents(texts)
    started = time.perf_counter()
    if base is not None:
        _check_base(files, base)
    loaded = [open_model(file, threads=threads, weights=weights, arch_file=arch_file) for file in files]
    compared = None if base is None else open_model(base, threads=threads, arch_file=arch_file)
    report_truncation(*files, *([] if base is None else [base]))
    warn_beyond_training(min(loaded, key=_trained), context)
    from quantcli.quality.evaluate import evaluate_all

    with _progress() as advance:
        results = evaluate_all(loaded, contents, context=context, chunks=chunks, base=compared, advance=advance)
    request = Request(files, texts, base, context)
    if as_json:
        print_json(document(results, request, time.perf_counter() - started))
    else:
        show(*views(results, request))


def _contents(texts: Sequence[Path]) -> list[tuple[str, str]]:
    """The texts, with what messages call each."""
    if texts.count(STDIN) > 1:
        raise UsageError("--text - is given twice, and stdin can be read once")
    contents = [read_text(None if text == STDIN else text, "the text") for text in texts]
    names = ["the text"] if len(texts) == 1 else [f"{text}: the text" for text in texts]
    return list(zip(names, contents, strict=True))


def _check_base(files: Sequence[Path], base: Path) -> None:
    """Check from the headers of the files that the base is the same model. Weights are not read."""
    from quantcli.formats.gguf.reader import open_gguf
    from quantcli.quality.reference import check_reference, warn_of_quantized_reference

    with open_gguf(base) as reference:
        for file in files:
            with open_gguf(file) as model:
                check_reference(model, reference)
        warn_of_quantized_reference(reference)


def _trained(loaded: LoadedModel) -> int:
    return loaded.model.sizes.context


@contextmanager
def _progress() -> Iterator[Callable[[int, int, float], None]]:
    """A progress bar of chunks on stderr, only on a terminal, with the perplexity so far."""
    with chunk_progress("evaluating") as bar:

        def advance(done: int, total: int, perplexity: float) -> None:
            bar.total = total
            bar.set_postfix_str(f"perplexity {perplexity:.4f}", refresh=False)
            bar.update(done - bar.n)

        yield advance
