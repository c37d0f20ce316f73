"""`quantize bench FILE`: the speed of prompt processing and token generation."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli.commands import described
from quantcli.cli.options import cache_type_option, file_argument, json_option, model_options
from quantcli.cli.output import print_json
from quantcli.cli.running import open_model
from quantcli.core.display import binary_size, decimal_count, printable
from quantcli.core.errors import UsageError

if TYPE_CHECKING:
    from quantcli.runner.benchmark import Speed
    from quantcli.runner.load import LoadedModel


@described("bench")
@file_argument
@click.option(
    "-p", "--prompt", "prompts", type=click.IntRange(min=0), multiple=True, default=[512], metavar="N",
    help="Prompt length in tokens; may be repeated; 0: none. Default: 512.",
)  # fmt: skip
@click.option(
    "-n", "--tokens", "generated", type=click.IntRange(min=0), multiple=True, default=[128],
    metavar="N", help="Tokens to generate; may be repeated; 0: none. Default: 128.",
)  # fmt: skip
@click.option(
    "-d", "--depth", "depths", type=click.IntRange(min=0), multiple=True, default=[0], metavar="N",
    help="Tokens already in the KV cache; may be repeated. Default: 0.",
)  # fmt: skip
@click.option(
    "-r", "--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N",
    help="Repetitions of each test.",
)  # fmt: skip
@cache_type_option
@model_options
@json_option()
def command(
    file: Path,
    prompts: tuple[int, ...],
    generated: tuple[int, ...],
    depths: tuple[int, ...],
    repeats: int,
    cache_type: str,
    weights: str | None,
    arch_file: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measures prompt processing (pp) and text generation (tg) as llama-bench does: random tokens, no sampling, one warm-up
    run. Prints a Markdown table of tokens per second, mean and standard deviation.

    \b
    quantize bench model.gguf
    quantize bench model.gguf -p 0 -n 32 -d 0 -d 1024 -d 2048
    """
    from quantcli.kernels.threads import thread_count
    from quantcli.runner.benchmark import Task, measure

    tasks = [Task(count, 0, depth) for depth in depths for count in prompts if count]
    tasks += [Task(0, count, depth) for depth in depths for count in generated if count]
    if not tasks:
        raise UsageError("nothing to measure: both the prompt length and the number of tokens to generate are 0")
    loaded = open_model(file, threads=threads, weights=weights, cache_type=cache_type, arch_file=arch_file)
    speeds = _shown_progress(measure(loaded.model, tasks, repeats, cache_type), len(tasks))
    if as_json:
        print_json(_document(loaded, list(speeds), thread_count(), cache_type))
    else:
        _show(loaded, speeds, thread_count())


def _shown_progress(speeds: Iterable[Speed], total: int) -> Iterable[Speed]:
    from tqdm import tqdm

    # No progress bar where a table on the terminal shows the progress itself.
    hidden = not sys.stderr.isatty() or sys.stdout.isatty()
    return tqdm(speeds, total=total, unit="task", desc="measuring", leave=False, disable=hidden, file=sys.stderr)  # type: ignore[no-any-return]


def _document(loaded: LoadedModel, speeds: list[Speed], threads: int, cache_type: str) -> dict[str, Any]:
    return {
        "path": str(loaded.path),
        "architecture": loaded.model.sizes.architecture,
        "parameters": loaded.parameters,
        "weights_bytes": loaded.model.weights_bytes,
        "threads": threads,
        "cache_type": cache_type,
        "results": [
            {
                "test": speed.task.name,
                "prompt": speed.task.prompt,
                "generated": speed.task.generated,
                "depth": speed.task.depth,
                "tokens_per_second": speed.mean,
                "stddev": speed.deviation,
                "samples": list(speed.samples),
            }
            for speed in speeds
        ],
    }


def _show(loaded: LoadedModel, speeds: Iterable[Speed], threads: int) -> None:
    """The table, line by line as tasks are measured."""
    name = printable(loaded.path.name)
    size, weights = binary_size(loaded.model.weights_bytes), decimal_count(loaded.parameters)
    wide = max(len(name), 5)
    click.echo(f"| {'model':<{wide}} | {'size':>10} | {'params':>8} | threads | {'test':>15} | {'t/s':>17} |")
    click.echo(f"| {'-' * wide} | {'-' * 9}: | {'-' * 7}: | ------: | {'-' * 14}: | {'-' * 16}: |")
    for speed in speeds:
        rate = f"{speed.mean:.2f} ± {speed.deviation:.2f}"
        click.echo(f"| {name:<{wide}} | {size:>10} | {weights:>8} | {threads:>7} | {speed.task.name:>15} | {rate:>17} |")
