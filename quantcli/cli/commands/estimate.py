"""`quantize estimate MODEL`: sizes of file types, and the memory to run them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from quantcli.cli.commands import described
from quantcli.cli.completions import complete_types
from quantcli.cli.options import cache_type_option, json_option
from quantcli.cli.output import columns, print_json, say, show
from quantcli.core.display import binary_size, decimal_count

if TYPE_CHECKING:
    from quantcli.quality.estimate import Estimate, Row


@described("estimate")
@click.argument("model")
@click.option(
    "-t", "--type", "types", metavar="T[,T...]", shell_complete=complete_types, help="File types. Default: all."
)
@click.option(
    "--ctx", "contexts", type=click.IntRange(min=1), multiple=True, metavar="N",
    help="Context length; repeatable. Default: 4096 and 32768, at most the trained one.",
)  # fmt: skip
@cache_type_option
@click.option("--ram", metavar="SIZE", help="Memory that there is, such as 8GiB: what fits, and which type to take.")
@json_option()
def command(
    model: str, types: str | None, contexts: tuple[int, ...], cache_type: str, ram: str | None, as_json: bool
) -> None:
    """MODEL is a directory, a GGUF file or ORG/NAME of the hub. Only headers are read, those of a hub model by ranges.
    Sizes are exact, without an importance matrix. Memory is that of `quantize run` with a full context: weights, KV cache,
    activations, the program. Of a quantized file, other types are estimated where --type names them.

    \b
    quantize estimate Qwen/Qwen3-8B --ram 8GiB
    quantize estimate model/ --type Q4_K_M,Q6_K --ctx 8192 --cache-type q8_0
    """
    from quantcli.core.units import parse_bytes
    from quantcli.quality.estimate import estimate

    names = [] if types is None else [name.strip() for name in types.split(",")]
    memory = None if ram is None else parse_bytes(ram)
    found = estimate(model, names, contexts=contexts, cache_type=cache_type, memory=memory)
    if as_json:
        print_json(found.as_json())
        return
    _show(found, ram)


def _show(found: Estimate, ram: str | None) -> None:
    say(f"{found.name}: {found.architecture}, {decimal_count(found.parameters)} parameters")
    contexts = () if found.unrun else found.contexts
    memory = tuple(f"Memory, {context:,}" for context in contexts)
    last = ("Longest",) if ram is not None and contexts else ()
    table = columns("Type", "Bits", "File", *memory, *last, right=("Bits", "File", *memory, *last))
    best = found.recommended()
    for row in found.rows:
        table.add_row(*_cells(row, is_best=row is best and ram is not None))
    if contexts:
        table.add_row("KV cache", "", "", *(binary_size(count) for count in found.cache), *("" for _ in last))
    show(table)
    if found.unrun:
        say(f"memory is not estimated: {found.unrun}")
    elif ram is not None:
        what = "nothing fits" if best is None else f"take {best.type}, contexts of up to {best.longest:,} tokens fit"
        say(f"{ram}: {what}")


def _cells(row: Row, *, is_best: bool) -> list[str]:
    longest = [] if row.longest is None else [f"{row.longest:,}" if row.longest else "-"]
    mark = " *" if is_best else ""
    sizes = (binary_size(count) for count in (row.file_bytes, *row.memory))
    return [f"{row.type}{mark}", f"{row.bits_per_weight:.2f}", *sizes, *longest]
