"""Options shared by several commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from quantcli.cli.completions import complete_types
from quantcli.runner.text.sampling_options import SamplingOptions

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]

PATH: Final = click.Path(path_type=Path)

_TEXT_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)

file_argument = click.argument("file", type=PATH)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Number of threads. Default: one per processor."
)
arch_file_option = click.option(
    "--arch-file", type=PATH, metavar="TOML", help="Architecture file, for models of other architectures."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")
cache_type_option = click.option(
    "--cache-type", default="f16", show_default=True, metavar="T",
    help="Type of the KV cache: f32, f16, q8_0 or q4_0.",
)  # fmt: skip
weights_option = click.option(
    "--weights", metavar="TYPE", shell_complete=complete_types,
    help="Quantize F32, F16 and BF16 weights to this tensor type on loading.",
)  # fmt: skip


def json_option(help: str = "Print one JSON document.") -> Decorator:
    """The option `--json`, which gives the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=help)


def text_file_option(help: str) -> Decorator:
    """The option `--text`: a file, or - for standard input."""
    return click.option("-f", "--text", type=_TEXT_FILE, metavar="F", help=help)


def text_files_option(help: str, *, required: bool = True) -> Decorator:
    """The option `--text`, repeatable, which gives the parameter `texts`."""
    return click.option("-f", "--text", "texts", type=_TEXT_FILE, multiple=True, required=required, metavar="F", help=help)


def model_options(function: Function) -> Function:
    """The options for loading a model: the parameters `weights`, `arch_file` and `threads` of `running.open_model`."""
    return _all(weights_option, arch_file_option, threads_option)(function)


_SAMPLING: Final = (
    ("--temp", "temperature", "X", "Temperature; 0: greedy sampling."),
    ("--top-k", "top_k", "N", "Keep the N most probable tokens; 0: all."),
    ("--top-p", "top_p", "X", "Keep the most probable tokens up to this cumulative probability."),
    ("--min-p", "min_p", "X", "Minimum probability, relative to the most probable token."),
    ("--typical", "typical_p", "X", "Locally typical sampling: keep up to this cumulative probability."),
    ("--repeat-penalty", "repeat_penalty", "X", "Penalty on the logits of recent tokens; 1: none."),
    ("--presence-penalty", "presence_penalty", "X", "Subtract X from the logits of recent tokens."),
    ("--frequency-penalty", "frequency_penalty", "X", "The same, for each occurrence of a token."),
    ("--repeat-last-n", "repeat_last_n", "N", "Number of recent tokens for penalties; -1: all."),
    ("--seed", "seed", "N", "Seed of the random numbers."),
)
"""Rows of option, field of `SamplingOptions` (which has the default), metavar, and help."""


def sampling_options(function: Function) -> Function:
    """The sampling options: the fields of `SamplingOptions`."""
    defaults = SamplingOptions()
    rows = (
        click.option(
            option, field, default=getattr(defaults, field), show_default=True, metavar=metavar, help=help,
            type=int if metavar == "N" else float,
        )
        for option, field, metavar, help in _SAMPLING
    )  # fmt: skip
    return _all(*rows)(function)


def _all(*options: Decorator) -> Decorator:
    """Several options as one decorator, in this order."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
