"""`quantize eval FILE... --text F`: perplexity, and KL divergence from a less quantized file of the same model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantcli.cli.commands import described
from quantcli.cli.evaluating import evaluate_files, named_texts
from quantcli.cli.evaluations import Request, document, views
from quantcli.cli.options import PATH, json_option, model_options, text_files_option
from quantcli.cli.output import print_json, show
from quantcli.cli.text_tables import View
from quantcli.core.errors import UsageError

if TYPE_CHECKING:
    from quantcli.quality.evaluate import TextEvaluation


@described("eval")
@click.argument("files", metavar="FILE...", type=PATH, nargs=-1, required=True)
@text_files_option("Text file, UTF-8; - reads stdin; repeatable.")
@click.option(
    "--ctx", "context", type=click.IntRange(min=4), default=512, show_default=True, metavar="N",
    help="Tokens per chunk; only the second half of each chunk is scored.",
)  # fmt: skip
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Maximum number of chunks per text. Default: all.")
@click.option("--base", type=PATH, metavar="FILE", help="Base model, such as F16: measure the KL divergence from it.")
@click.option("--plot", is_flag=True, help="Also draw size against KL divergence, or perplexity without --base.")
@model_options
@json_option()
def command(
    files: tuple[Path, ...],
    texts: tuple[Path, ...],
    context: int,
    chunks: int | None,
    base: Path | None,
    plot: bool,
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
    if plot and as_json:
        raise UsageError("--plot and --json do not go together: a JSON document has no plot")
    contents = named_texts(texts)
    started = time.perf_counter()
    results = evaluate_files(
        files, contents, base, context=context, chunks=chunks, threads=threads, weights=weights, arch_file=arch_file
    )
    request = Request(files, texts, base, context)
    if as_json:
        print_json(document(results, request, time.perf_counter() - started))
    else:
        show(*views(results, request), *([_plot(results, files)] if plot else []))


def _plot(results: Sequence[TextEvaluation], files: Sequence[Path]) -> View:
    from quantcli.cli.terminal_plot import TerminalPlot
    from quantcli.formats.gguf.reader import open_gguf
    from quantcli.quality.report.files import labels
    from quantcli.quality.report.prices import prices

    sizes = []
    for path in files:
        with open_gguf(path) as file:
            sizes.append(file.file_bytes)
    return TerminalPlot(prices(labels(files), sizes, results))
