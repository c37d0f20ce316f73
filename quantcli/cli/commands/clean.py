"""`quantize clean`: removes the temporary files that killed runs left."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from quantcli.cli.commands import described
from quantcli.cli.options import PATH, json_option
from quantcli.cli.output import columns, print_json, say, show
from quantcli.core.display import binary_size
from quantcli.core.errors import FormatError, OutputError
from quantcli.formats.leftovers import Leftover, find_leftovers


@described("clean")
@click.argument("paths", nargs=-1, type=PATH, metavar="[PATH]...")
@click.option("-y", "--yes", is_flag=True, help="Remove them without asking.")
@json_option()
def command(paths: tuple[Path, ...], yes: bool, as_json: bool) -> None:
    """PATH is a directory, or a file in it; subdirectories are not searched. Default: the current directory. Files of
    running processes are not listed. Shards whose replacement was interrupted are put back to their places.

    Without --yes the files are only listed; on a terminal you are asked. A later run with the same output removes them too.

    \b
    quantize clean
    quantize clean /models --yes
    """
    directories = dict.fromkeys(path.parent if path.is_file() else path for path in paths or (Path(),))
    found = [leftover for directory in directories for leftover in _found(directory)]
    if not as_json:
        _show(found)
    ask = bool(found) and not yes and not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    agreed = yes or (ask and click.confirm("Remove the files, and put back the shards?"))
    cleared = [leftover for leftover in found if agreed and _clear(leftover)]
    if as_json:
        print_json({"leftovers": [_document(leftover) for leftover in found], "removed": len(cleared)})
    elif found and agreed:
        say(f"{len(cleared)} of {len(found)} removed")
    elif found and not ask:
        say("nothing was removed; --yes removes them")


def _found(directory: Path) -> list[Leftover]:
    try:
        return find_leftovers(directory)
    except OSError as error:
        raise FormatError(directory, f"cannot be searched: {error.strerror}") from None


def _clear(leftover: Leftover) -> bool:
    try:
        return leftover.clear()
    except OSError as error:
        raise OutputError(f"{leftover.path}: cannot be removed: {error.strerror}") from None


def _show(found: Sequence[Leftover]) -> None:
    if not found:
        say("no temporary files of killed runs")
        return
    table = columns("Left by a killed run", "Size", "Put back", right=("Size",))
    for leftover in found:
        table.add_row(str(leftover.path), binary_size(leftover.nbytes), ", ".join(path.name for path in leftover.restored))
    show(table)


def _document(leftover: Leftover) -> dict[str, object]:
    restored = [str(path) for path in leftover.restored]
    return {"path": str(leftover.path), "bytes": leftover.nbytes, "put_back": restored}
