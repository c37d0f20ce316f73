"""`quantize completion SHELL`: the script that completes commands, options, types and files in a shell."""

from __future__ import annotations

import click

from quantcli.cli.commands import described
from quantcli.cli.completions import VARIABLE


@described("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Add the line for your shell to its configuration:

    \b
    eval "$(quantize completion bash)"        ~/.bashrc
    eval "$(quantize completion zsh)"         ~/.zshrc
    quantize completion fish | source         ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    from quantcli.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise LookupError(shell)
    click.echo(kind(cli, {}, "quantize", VARIABLE).source())
