"""`quantize types`: the tensor types, and the recipes for `--type`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

from quantcli.cli.commands import described
from quantcli.cli.options import json_option
from quantcli.cli.output import columns, heading, print_json, show
from quantcli.cli.text_tables import Table
from quantcli.conversion.recipes import RECIPES, Recipe
from quantcli.core.block_types import TYPES, BlockType

FAMILIES: Final[Mapping[str | None, str]] = {
    "floats": "floating point",
    "legacy": "blocks with a scale, some with a minimum",
    "k_affine": "super-blocks, with a scale and a minimum per sub-block",
    "k_symmetric": "super-blocks, with a scale per sub-block",
    "i_lattice": "groups of weights from a codebook; best with an importance matrix",
    "i_nonlinear": "4 bits, 16 non-uniform levels",
    "ternary": "ternary weights (-1, 0, 1), for models trained with them",
    "microscale": "4-bit floats with a shared scale",
    None: "not a quantization target",
}
"""What the types of a family have in common, for people who choose one."""


ADVICE: Final[Mapping[str, str]] = {
    "Q8_0": "as good as the original",
    "Q6_K": "no difference that is noticed",
    "Q5_K_M": "close to the original",
    "Q4_K_M": "recommended: the usual choice",
    "IQ4_XS": "the smallest with little loss",
    "Q3_K_M": "if nothing larger fits",
    "IQ3_S": "smaller; with an importance matrix",
    "Q2_K": "a larger model in Q4_K_M is better",
    "IQ2_S": "for very large models only",
}
"""Recipes that are worth a choice, from the largest on, and what is to be said of each."""

_FIGURES: Final = "type_figures.json"
"""What `tests/bench/type_figures.py` has measured."""


@described("types")
@json_option()
def command(as_json: bool) -> None:
    """A recipe chooses the type of each tensor: its base type for most, a better one for sensitive tensors. In the first
    table, bits and size are those of a whole model with the shapes of Llama 3.1 8B. The columns of Gemma 3 270M and of the
    example are the KL divergence from the original, nats per token, of files with an importance matrix; larger models lose
    less. `quantize estimate MODEL` has the sizes of your model.
    """
    if as_json:
        print_json(document())
    else:
        show(heading("Which to take"), _choice_view())
        show(heading("Recipes, for --type"), _recipes_view(), heading("Tensor types, for --tensor-type"), _types_view())


def figures() -> dict[str, dict[str, float]]:
    """For each recipe of `ADVICE`: the bits and bytes of an 8B model, the divergences of `example` and `model`."""
    found: dict[str, dict[str, float]] = json.loads(files("quantcli.cli").joinpath(_FIGURES).read_text(encoding="utf-8"))
    return found


def _choice_view() -> Table:
    right = ("Bits", "8B model", "Gemma 270M", "Example")
    table = columns("Recipe", *right, "", right=right)
    for name, figure in figures().items():
        size = f"{figure['bytes'] / 2**30:.1f} GiB"
        table.add_row(
            name, f"{figure['bits']:.2f}", size, f"{figure['model']:.4f}", f"{figure['example']:.4f}", ADVICE[name]
        )
    return table


def document() -> dict[str, Any]:
    """The JSON document."""
    return {
        "recipes": [
            {
                "name": recipe.name,
                "aliases": list(recipe.aliases),
                "file_type": recipe.file_type,
                "base": recipe.base.name if recipe.base else None,
                "others": [kind.name for kind in _others(recipe)],
                "needs_imatrix": needs_importance(recipe),
                "advice": ADVICE.get(recipe.name),
                "figures": figures().get(recipe.name),
            }
            for recipe in RECIPES.values()
        ],
        "types": [
            {
                "name": kind.name,
                "id": kind.id,
                "block_length": kind.block_length,
                "block_bytes": kind.block_bytes,
                "bits_per_weight": kind.bits_per_weight,
                "family": kind.family,
                "target": kind.family is not None,
            }
            for kind in TYPES.values()
        ],
    }


def needs_importance(recipe: Recipe) -> bool:
    """Whether the recipe has a type that requires an importance matrix."""
    return not recipe.importance_required.isdisjoint(_types(recipe))


def _types(recipe: Recipe) -> set[BlockType]:
    return {rule.type for rule in recipe.rules} | ({recipe.base} if recipe.base else set())


def _others(recipe: Recipe) -> list[BlockType]:
    """The types other than the base type, by descending bits per weight."""
    return sorted(_types(recipe) - {recipe.base}, key=lambda kind: (-kind.bits_per_weight, kind.name))


def _recipes_view() -> Table:
    right = ("File type", "Bits")
    table = columns("Recipe", *right, "Base", "Other types", "Aliases", "Importance matrix", right=right)
    for recipe in RECIPES.values():
        table.add_row(
            recipe.name,
            "" if recipe.file_type is None else str(recipe.file_type),
            f"{recipe.base.bits_per_weight:g}" if recipe.base else "",
            recipe.base.name if recipe.base else "unchanged",
            ", ".join(kind.name for kind in _others(recipe)),
            ", ".join(recipe.aliases),
            "needed" if needs_importance(recipe) else "",
        )
    return table


def _types_view() -> Table:
    right = ("Id", "Block", "Bytes", "Bits")
    table = columns("Type", *right, "Description", right=right)
    for kind in TYPES.values():
        table.add_row(
            kind.name,
            str(kind.id),
            str(kind.block_length),
            str(kind.block_bytes),
            f"{kind.bits_per_weight:g}",
            FAMILIES[kind.family],
        )
    return table
