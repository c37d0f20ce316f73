"""What a shell completes: types and files. click does the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

VARIABLE: Final = "_QUANTIZE_COMPLETE"
"""The environment variable by which the shell's script asks for completions."""


def complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The shell's own completion of file names."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def complete_recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Recipes: for the last of several types, separated by commas."""
    from click.shell_completion import CompletionItem

    from quantcli.conversion.recipes import RECIPES

    before, comma, last = incomplete.rpartition(",")
    names = [name for recipe in RECIPES.values() for name in (recipe.name, *recipe.aliases)]
    return [CompletionItem(f"{before}{comma}{name}") for name in names if name.startswith(last.upper())]


def complete_types(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Tensor types that weights can be quantized to."""
    from click.shell_completion import CompletionItem

    from quantcli.core.block_types import TYPES

    names = [kind.name for kind in TYPES.values() if kind.family is not None]
    return [CompletionItem(name) for name in names if name.startswith(incomplete.upper())]
