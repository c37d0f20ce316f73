"""`quantize types`: every type and every recipe, once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from quantcli.cli.commands.types import ADVICE, FAMILIES, command, document, figures
from quantcli.conversion.recipes import RECIPES
from quantcli.core.block_types import TYPES


def test_the_tables_list_every_recipe_and_type() -> None:
    result = CliRunner().invoke(command, [], catch_exceptions=False)
    first = [line.split("  ")[0] for line in result.stdout.splitlines()]
    first = first[first.index("Recipes, for --type") :]
    recipes, types = first[: first.index("Type")], first[first.index("Type") :]
    assert [name for name in recipes if name in RECIPES] == list(RECIPES)
    assert [name for name in types if name in TYPES] == list(TYPES)


def test_what_is_advised_was_measured_and_fits_a_terminal() -> None:
    """In descending size; the larger, the closer to the original."""
    assert list(figures()) == list(ADVICE)
    assert ADVICE.keys() <= RECIPES.keys()
    for name in ("bytes", "example", "model"):
        values = [figure[name] for figure in figures().values()]
        assert values == sorted(values, reverse=name == "bytes")
    result = CliRunner().invoke(command, [], catch_exceptions=False)
    table = result.stdout.partition("Recipes, for --type")[0].splitlines()
    assert len(table) > len(ADVICE)
    assert max(map(len, table)) <= 80


def test_the_json_document() -> None:
    result = CliRunner().invoke(command, ["--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert found == document()
    types = {entry["name"]: entry for entry in found["types"]}
    assert types["Q4_K"] == {
        "name": "Q4_K", "id": 12, "block_length": 256, "block_bytes": 144, "bits_per_weight": 4.5, "family": "k_affine",
        "target": True,
    }  # fmt: skip
    assert not types["Q8_K"]["target"]
    recipes = {entry["name"]: entry for entry in found["recipes"]}
    assert recipes["Q4_K_M"]["base"] == "Q4_K"
    assert recipes["Q4_K_M"]["file_type"] == 15
    assert "Q6_K" in recipes["Q4_K_M"]["others"]


def test_every_family_is_described() -> None:
    assert {kind.family for kind in TYPES.values()} == set(FAMILIES)


def test_types_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf", reason="the independent reader is not installed")
    # Its Q8_1 has two float32 in a block, as ggml had before it took halves.
    known = {kind.name: kind for kind in gguf.GGMLQuantizationType if kind.name != "Q8_1"}
    for entry in document()["types"]:
        if entry["name"] in known:
            kind = known[entry["name"]]
            assert entry["id"] == kind.value
            assert (entry["block_length"], entry["block_bytes"]) == gguf.GGML_QUANT_SIZES[kind]


def test_the_recipes_that_need_an_importance_matrix_are_those_the_reference_refuses(shared: Path) -> None:
    with gzip.open(shared / "golden" / "llama-8x256.json.gz", "rt") as file:
        golden = json.load(file)
    found = {entry["name"]: entry["needs_imatrix"] for entry in document()["recipes"]}
    for name, entry in golden.items():
        recipe, _, kind = name.partition(".")
        if kind == "plain" and recipe in found:
            assert found[recipe] == ("error" in entry), recipe
