"""One module per command. Their summaries are here, so that `--help` loads none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import cleandoc
from typing import Any, Final

import click

from quantcli.cli.habits import OPTION_NAMES

SECTIONS: Final = {
    "Conversion": {
        "convert": "Convert a checkpoint to a quantized GGUF file (the default command).",
        "imatrix": "Collect an importance matrix from calibration text.",
        "lora": "Convert a LoRA adapter to a GGUF adapter.",
        "split": "Split a GGUF file into shards.",
        "merge": "Merge the shards of a split model into one GGUF file.",
        "edit": "Change the metadata of a GGUF file.",
    },
    "Running and measuring": {
        "run": "Generate text from a GGUF file on the CPU.",
        "embed": "Compute text embeddings with a GGUF file.",
        "eval": "Measure perplexity, and KL divergence from a base model.",
        "estimate": "Estimate sizes of file types, and the memory to run them.",
        "compare": "Compare the weights of two files of one model, tensor by tensor.",
        "report": "Show size, divergence and errors of files as an HTML page.",
        "bench": "Measure the speed of prompt processing and generation.",
    },
    "Passing on": {
        "export": "Write a GGUF file as a Hugging Face directory.",
        "modelfile": "Write the Modelfile of a GGUF file, for Ollama.",
        "push": "Upload GGUF files to the Hugging Face hub.",
    },
    "Showing": {
        "inspect": "Show the metadata and tensors of a GGUF file.",
        "verify": "Check that a GGUF file is whole and undamaged.",
        "reproduce": "Check that a model gives a GGUF file again, byte for byte.",
        "tokenize": "Tokenize a text with the vocabulary of a GGUF file.",
        "types": "List the recipes for --type, and the tensor types.",
        "architectures": "List the supported model architectures.",
    },
    "Setting up": {
        "warm": "Compile kernels ahead, for container images and CI.",
        "clean": "Remove the temporary files of killed runs.",
        "completion": "Print the completion script of a shell: bash, zsh or fish.",
    },
}
"""The summaries of the commands in the sections of `quantize --help`. The click command is `command` in
`quantcli.cli.commands.<name>`, loaded when it is called."""

SUMMARIES: Final = {name: summary for commands in SECTIONS.values() for name, summary in commands.items()}
"""Every command's summary."""


class Command(click.Command):
    """A command whose help has its options in groups, and its arguments in the order of `usage`, if that is given.

    It also takes other tools' names for its options, without showing them in its help.
    """

    def __init__(
        self, *arguments: Any, usage: str | None = None, groups: Mapping[str, Sequence[str]] | None = None, **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        self.usage = usage
        self.groups = groups or {}

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """What the usage line has after the command."""
        return super().collect_usage_pieces(ctx) if self.usage is None else [self.usage]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options in their groups, and then the others."""
        records = {option.name: option.get_help_record(ctx) for option in self.get_params(ctx)}
        grouped = {name for names in self.groups.values() for name in names}
        others = [name for name in records if name not in grouped]
        for title, names in (*self.groups.items(), ("Other options" if grouped else "Options", others)):
            rows = [record for name in names if (record := records[name]) is not None]
            with formatter.section(title):
                formatter.write_dl(rows)

    def make_parser(self, ctx: click.Context) -> Any:
        """click's parser, with the additional names."""
        parser = super().make_parser(ctx)
        options = [option for option in self.get_params(ctx) if isinstance(option, click.Option)]
        own = {name for option in options for name in option.opts}
        for option in options:
            action = "append" if option.multiple else "store"
            names = [name for ours in option.opts for name in OPTION_NAMES.get(ours, ()) if name not in own]
            if names:
                parser.add_option(obj=option, opts=names, dest=option.name, action=action, nargs=option.nargs)
        return parser


def described(name: str, **more: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function the command of this name. Its help is its summary and, below that, the function's docstring.

    `more` are arguments of `Command`.
    """

    def made(function: Callable[..., Any]) -> click.Command:
        text = f"{SUMMARIES[name]}\n\n{cleandoc(function.__doc__ or '')}"
        return click.command(name, cls=Command, help=text, **more)(function)

    return made
