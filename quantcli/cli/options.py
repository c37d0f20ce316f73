"""Options shared by several commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from quantcli.runner.text.sampling_options import SamplingOptions

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]

PATH: Final = click.Path(path_type=Path)

file_argument = click.argument("file", type=PATH)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads. Default: one per processor."
)
arch_file_option = click.option("--arch-file", type=PATH, metavar="TOML", help="An architecture of your own.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")
cache_type_option = click.option(
    "--cache-type", default="f16", show_default=True, metavar="T",
    help="How the context is kept in memory: f32, f16, q8_0 or q4_0.",
)  # fmt: skip
weights_option = click.option(
    "--weights", metavar="TYPE", help="Quantize F32, F16 and BF16 weights to this tensor type as they are loaded."
)


def json_option(help: str = "Print one JSON document.") -> Decorator:
    """The option `--json`, which gives the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=help)


def text_file_option(help: str, *, required: bool = False) -> Decorator:
    """The option `--text`: a file, or - for standard input."""
    kind = click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
    return click.option("-f", "--text", type=kind, required=required, metavar="F", help=help)


def model_options(function: Function) -> Function:
    """The options for loading a model: the parameters `weights`, `arch_file` and `threads` of `running.open_model`."""
    return _all(weights_option, arch_file_option, threads_option)(function)


_SAMPLING: Final = (
    ("--temp", "temperature", "X", "Randomness; 0 always takes the likeliest token."),
    ("--top-k", "top_k", "N", "Choose among the N likeliest tokens; 0: all."),
    ("--top-p", "top_p", "X", "Choose among the likeliest tokens of together this probability."),
    ("--min-p", "min_p", "X", "Leave out tokens less likely than this share of the likeliest."),
    ("--typical", "typical_p", "X", "Choose among the tokens that surprise as expected, of together this probability."),
    ("--repeat-penalty", "repeat_penalty", "X", "Above 1: make recent tokens less likely."),
    ("--presence-penalty", "presence_penalty", "X", "Take this from recent tokens' logits."),
    ("--frequency-penalty", "frequency_penalty", "X", "The same, for each time a token occurred."),
    ("--repeat-last-n", "repeat_last_n", "N", "So many tokens are recent; -1: all."),
    ("--seed", "seed", "N", "Make the choices repeatable."),
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
