"""`quantize architectures`: which model architectures are supported, from their data files."""

from __future__ import annotations

import click

from quantcli.cli.output import columns, print_json, show


@click.command("architectures")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """List the architectures that are converted, and the classes of config.json that mean them.

    Another one can be described in a file of your own: `quantize MODEL --type T --arch-file FILE`.
    """
    from quantcli.architectures.tables import headings

    known = sorted(headings(), key=lambda heading: heading.name)
    if as_json:
        facts = ("name", "gguf", "title", "classes")
        print_json([{fact: getattr(entry, fact) for fact in facts} for entry in known])
        return
    table = columns("Architecture", "GGUF", "Models", "Classes in config.json")
    for entry in known:
        table.add_row(entry.name, entry.gguf, entry.title, ", ".join(entry.classes))
    show(table)
