from __future__ import annotations

from importlib.resources import files

import pytest

from quantcli.conversion.recipes import RECIPES, find_recipe, layer_of, load_recipes
from quantcli.core.block_types import TYPES
from quantcli.core.errors import UsageError

DOCUMENT = files("quantcli.conversion").joinpath("recipes.toml").read_text(encoding="utf-8")


def test_file_type_numbers_are_those_of_llama_h() -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="has the numbers")
    theirs = {
        name.removeprefix("LLAMA_FTYPE_MOSTLY_").removeprefix("LLAMA_FTYPE_ALL_"): number
        for name, number in vars(llama_cpp).items()
        if name.startswith("LLAMA_FTYPE_") and name != "LLAMA_FTYPE_GUESSED"
    }
    ours = {recipe.name: recipe.file_type for recipe in RECIPES.values() if recipe.base}
    shared = ours.keys() & theirs.keys()
    assert len(shared) == 35
    assert {name: theirs[name] for name in shared} == {name: ours[name] for name in shared}
    # A recipe that llama.cpp does not have says which of its file types it is nearest to.
    assert set(ours.values()) <= set(theirs.values())


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("Q4_K_M", "Q4_K_M"),
        ("q4_k_m", "Q4_K_M"),
        ("Q4_K", "Q4_K_M"),
        ("q3_k", "Q3_K_M"),
        ("Q5_K", "Q5_K_M"),
        ("copy", "COPY"),
    ],
)
def test_names_and_aliases(asked: str, found: str) -> None:
    assert find_recipe(asked).name == found


def test_an_unknown_name_is_answered_with_its_neighbours() -> None:
    with pytest.raises(UsageError, match="unknown type 'Q4_K_N'") as caught:
        find_recipe("Q4_K_N")
    assert caught.value.hint is not None
    assert "Q4_K_M" in caught.value.hint


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(UsageError) as caught:
        find_recipe("zzz")
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in RECIPES)


def test_every_quantized_base_type_has_a_way_out_or_none_by_intent() -> None:
    policy = RECIPES["Q4_K_M"].policy
    stuck = {row.name for row in TYPES.values() if row.is_quantized and policy.fit(row, 7) is None}
    assert stuck == {"Q1_0", "NVFP4", "Q8_1", "Q8_K"}


@pytest.mark.parametrize(
    ("name", "layer"), [("blk.7.attn_q.weight", 7), ("blk.12x", 12), ("v.blk.1.a", -1), ("output", -1)]
)
def test_layers(name: str, layer: int) -> None:
    assert layer_of(name) == layer


def test_a_recipe_is_added_by_one_entry() -> None:
    entry = """
        [recipes.MINE]
        file_type = 99
        base = "Q4_0"
        rules = ["plain", { role = "feed_forward_down", if = ["importance", "not falcon"], type = "Q8_0" }]
    """
    recipe = load_recipes(DOCUMENT + entry)["MINE"]
    assert recipe.base is TYPES["Q4_0"]
    assert [rule.id for rule in recipe.rules][-1] == "MINE[1]"
    assert recipe.rules[:-1] == RECIPES["Q4_1"].rules


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ('"nonsense"', "no shared list of rules is called 'nonsense'"),
        ('{ role = "nose", type = "Q8_0" }', "unknown nose"),
        ('{ if = "raining", type = "Q8_0" }', "no condition 'raining'"),
        ('{ type = "Q9_9" }', "unknown tensor type 'Q9_9'"),
        ('{ roll = "output", type = "Q8_0" }', "unknown roll"),
    ],
)
def test_mistakes_in_a_recipe_are_named(rule: str, message: str) -> None:
    entry = f'\n[recipes.MINE]\nfile_type = 99\nbase = "Q4_0"\nrules = [{rule}]\n'
    with pytest.raises(ValueError, match=message):
        load_recipes(DOCUMENT + entry)


def test_a_condition_about_no_fact_is_refused() -> None:
    with pytest.raises(ValueError, match="'weather' is not a fact"):
        load_recipes(DOCUMENT + '\n[conditions.raining]\ntest = "weather == 1"\nsays = "in the rain"\n')
