"""One module per command. Their summaries are here, so that `--help` loads none of them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from typing import Any, Final

import click

SUMMARIES: Final = {
    "convert": "Turn a checkpoint into a quantized GGUF file (the default command).",
    "inspect": "Show what is inside a GGUF file.",
    "run": "Generate text from a GGUF file on the CPU.",
    "eval": "Measure perplexity, and what quantization cost.",
    "bench": "Measure how fast a GGUF file runs on the CPU.",
    "embed": "Make embeddings of texts with a GGUF file.",
    "tokenize": "Show the tokens of a text.",
    "lora": "Turn a LoRA adapter into a GGUF adapter.",
    "split": "Write a GGUF file in parts.",
    "merge": "Write the parts of a model as one GGUF file.",
    "architectures": "List the model architectures that are converted.",
    "types": "List the types and recipes --type takes.",
}
"""Every command's summary. Its click command is `command` in `quantcli.cli.commands.<name>`, loaded when it is called."""


def described(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function the command of this name. Its help is its summary and, below that, the function's docstring."""

    def made(function: Callable[..., Any]) -> click.Command:
        return click.command(name, help=f"{SUMMARIES[name]}\n\n{cleandoc(function.__doc__ or '')}")(function)

    return made
