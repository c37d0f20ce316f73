"""Write docs/commands.md: the help of every command.

    python docs/make_commands.py
"""

from __future__ import annotations

from pathlib import Path

import click

from quantcli.cli.commands import SECTIONS
from quantcli.cli.main import cli

WIDTH = 90
PAGE = Path(__file__).with_name("commands.md")


def reference() -> str:
    """The page."""
    parts = ["# Commands", "", "Made by `docs/make_commands.py` from `quantize COMMAND --help`.", ""]
    for title, commands in SECTIONS.items():
        parts += [f"## {title}", ""]
        for name in commands:
            parts += [f"### quantize {name}", "", "```text", _help(name), "```", ""]
    return "\n".join(parts)


def _help(name: str) -> str:
    settings = cli.context_settings | {"max_content_width": WIDTH, "terminal_width": WIDTH}
    group = click.Context(cli, info_name="quantize", **settings)
    command = cli.get_command(group, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=group, max_content_width=WIDTH, terminal_width=WIDTH)
    return command.get_help(context).rstrip()


if __name__ == "__main__":
    PAGE.write_text(reference() + "\n", encoding="utf-8")
