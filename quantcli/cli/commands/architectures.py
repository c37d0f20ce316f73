"""`quantize architectures`: the supported model architectures, from their architecture files."""

from __future__ import annotations

from quantcli.cli.commands import described
from quantcli.cli.options import json_option
from quantcli.cli.output import columns, print_json, show


@described("architectures")
@json_option()
def command(as_json: bool) -> None:
    """Each is listed with its name in GGUF files in parentheses, where that differs, and with the classes that select it,
    those of `architectures` in config.json.

    To add an architecture, write an architecture file: `quantize MODEL --type T --arch-file FILE`. The commands that run a
    model take the same option.
    """
    from quantcli.architectures.tables import headings

    known = sorted(headings(), key=lambda heading: heading.name)
    if as_json:
        facts = ("name", "gguf", "title", "classes")
        print_json([{fact: getattr(entry, fact) for fact in facts} for entry in known])
        return
    table = columns("Architecture (GGUF)", "Models", "Classes in config.json")
    for entry in known:
        # With commas, or with GGUF's names in their own column, the longest words do not fit a line of 80 characters.
        name = entry.name if entry.gguf == entry.name else f"{entry.name} ({entry.gguf})"
        table.add_row(name, entry.title, " ".join(entry.classes))
    show(table)
