"""`quantize warm`: compiles kernels ahead, into the cache."""

from __future__ import annotations

from functools import partial

import click

from quantcli.cli.commands import described
from quantcli.cli.compiling import announce_compiling
from quantcli.cli.completions import complete_recipes
from quantcli.cli.options import json_option
from quantcli.cli.output import print_json, say
from quantcli.core.display import binary_size
from quantcli.core.errors import OutputError, UsageError
from quantcli.core.listing import counted

_COMMON = ("Q4_K_M",)
"""The recipes whose kernels are compiled by default."""


@described("warm")
@click.argument("types", nargs=-1, metavar="[TYPE]...", shell_complete=complete_recipes)
@click.option("--all", "everything", is_flag=True, help="All recipes, with and without an importance matrix.")
@json_option()
def command(types: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Each TYPE is a recipe or a tensor type. Default: Q4_K_M. Compiles the kernels that quantize to it, and those that run
    a model like Llama with it. Others are compiled when they are first needed.

    QUANTCLI_CACHE_DIR sets the directory of compiled kernels.

    \b
    quantize warm
    quantize warm Q8_0 Q5_K_M
    """
    from quantcli.cli.example_model import plans, use_kernels
    from quantcli.conversion.recipes import RECIPES
    from quantcli.kernels.compilation import compile_ahead
    from quantcli.kernels.kernel_cache import cache_directory, keeps_kernels, kept_kernels

    if types and everything:
        raise UsageError("--all includes every type")
    names = tuple(RECIPES) if everything else types or _COMMON
    for name in names:
        plans(name, False)  # refuses unknown names
    folder = cache_directory()
    if not keeps_kernels():
        raise OutputError(f"{folder}: cannot be written", hint="set QUANTCLI_CACHE_DIR to another directory")
    before = len(kept_kernels())
    announce_compiling()
    compile_ahead(partial(use_kernels, names, everything))
    count, size = len(kept_kernels()), sum(file.stat().st_size for file in folder.iterdir())
    if as_json:
        print_json({"directory": str(folder), "compiled": count - before, "kernels": count, "bytes": size})
    else:
        say(f"{folder}: {counted(count, 'kernel')}, {binary_size(size)}")
