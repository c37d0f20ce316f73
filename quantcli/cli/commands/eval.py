"""`quantize eval FILE --text F`: perplexity, and KL divergence from a less quantized file of the same model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli.commands import described
from quantcli.cli.mapped_files import report_truncation
from quantcli.cli.options import file_argument, json_option, model_options, text_file_option
from quantcli.cli.output import chunk_progress, columns, print_json, show
from quantcli.cli.running import open_model, warn_beyond_training
from quantcli.cli.texts import read_text
from quantcli.core.listing import counted

if TYPE_CHECKING:
    from quantcli.quality.evaluate import Evaluation


@described("eval")
@file_argument
@text_file_option("Text file, UTF-8; - reads stdin.", required=True)
@click.option(
    "--ctx", "context", type=click.IntRange(min=4), default=512, show_default=True, metavar="N",
    help="Tokens per chunk; only the second half of each chunk is scored.",
)  # fmt: skip
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Maximum number of chunks. Default: all.")
@click.option(
    "--base", type=click.Path(path_type=Path), metavar="FILE",
    help="Base model, such as F16: measure the KL divergence from it.",
)  # fmt: skip
@model_options
@json_option()
def command(
    file: Path,
    text: Path,
    context: int,
    chunks: int | None,
    base: Path | None,
    weights: str | None,
    arch_file: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Perplexity is computed as by llama-perplexity. With --base, also the Kullback-Leibler divergence from the base model
    in nats, and how often both models have the same top token. Results are comparable only with the same text, --ctx and
    --chunks.

    \b
    quantize eval model-Q4_K_M.gguf --text wiki.test.raw
    quantize eval model-Q4_K_M.gguf --text wiki.test.raw --chunks 50 --base model-F16.gguf
    quantize eval model-F16.gguf --weights Q4_K --text wiki.test.raw --base model-F16.gguf
    """
    content = read_text(None if str(text) == "-" else text, "the text")
    started = time.perf_counter()
    loaded = open_model(file, threads=threads, weights=weights, arch_file=arch_file)
    compared = None
    if base is not None:
        compared = open_model(base, threads=threads, arch_file=arch_file)
        report_truncation(file, base)
    warn_beyond_training(loaded, context)
    from quantcli.quality.evaluate import evaluate

    with _progress() as advance:
        result = evaluate(loaded, content, context=context, chunks=chunks, base=compared, advance=advance)
    if as_json:
        print_json(_document(result, file, base, context, time.perf_counter() - started))
    else:
        _show(result, context)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, float], None]]:
    """A progress bar of chunks on stderr, only on a terminal, with the perplexity so far."""
    with chunk_progress("evaluating") as bar:

        def advance(done: int, total: int, perplexity: float) -> None:
            bar.total = total
            bar.set_postfix_str(f"perplexity {perplexity:.4f}", refresh=False)
            bar.update(done - bar.n)

        yield advance


def _document(result: Evaluation, file: Path, base: Path | None, context: int, seconds: float) -> dict[str, Any]:
    document: dict[str, Any] = {
        "path": str(file),
        "perplexity": result.perplexity,
        "stderr": result.stderr,
        "tokens": result.tokens,
        "chunks": result.chunks,
        "context": context,
        "seconds": seconds,
    }
    if (found := result.divergence) is not None:
        document |= {
            "base": str(base),
            "base_perplexity": found.base_perplexity,
            "kl_divergence": {"mean": found.mean, "median": found.median, "p99": found.p99, "max": found.max},
            "same_top": found.same_top,
        }
    return document


def _show(result: Evaluation, context: int) -> None:
    facts = columns("", "")
    facts.add_row("Perplexity", f"{result.perplexity:.4f} ± {result.stderr:.4f}")
    if (found := result.divergence) is not None:
        change = result.perplexity / found.base_perplexity - 1
        facts.add_row("Base perplexity", f"{found.base_perplexity:.4f}, a change of {change:+.3%}")
        facts.add_row(
            "KL divergence",
            f"mean {found.mean:.6f}, median {found.median:.6f}, 99% {found.p99:.6f}, maximum {found.max:.6f}",
        )
        facts.add_row("Same top token", f"{found.same_top:.3%}")
    facts.add_row("Scored", f"{counted(result.tokens, 'token')} in {counted(result.chunks, 'chunk')} of {context}")
    show(facts)
