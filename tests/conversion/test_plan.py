from __future__ import annotations

from typing import Any

import pytest

from quantcli.conversion.plan import (
    PlannedTensor,
    PlanOptions,
    check_plan,
    file_order,
    make_plan,
    parse_override,
    parse_overrides,
    weight_type,
    without_importance,
)
from quantcli.conversion.recipes import find_recipe
from quantcli.core.block_types import TYPES
from quantcli.core.errors import ModelError, UnsupportedError, UsageError
from quantcli.formats.gguf.spec import Metadata, ValueType, array, string, u32
from quantcli.tensors.tensor import TensorInfo


def describe(architecture: str = "llama", **numbers: Any) -> Metadata:
    keys = {"block_count": 8, "attention.head_count": 4} | numbers
    metadata = {"general.architecture": string(architecture)}
    return metadata | {f"{architecture}.{key}": u32(value) for key, value in keys.items()}


def tensors(*names: str, shape: tuple[int, ...] = (16, 256), type: str = "BF16") -> list[TensorInfo]:
    return [TensorInfo(name, shape, TYPES[type]) for name in names]


def plan_one(
    recipe: str, name: str = "blk.0.attn_q.weight", options: PlanOptions | None = None, **how: Any
) -> PlannedTensor:
    (planned,) = make_plan(tensors(name, **how), describe(), find_recipe(recipe), options or PlanOptions())
    return planned


def test_order_is_that_of_the_file() -> None:
    names = ["blk.10.a", "blk.2.b", "output.weight", "blk.2.a", "token_embd.weight", "blk.2.B", "v.blk.0.x"]
    ordered = ["output.weight", "token_embd.weight", "v.blk.0.x", "blk.2.B", "blk.2.a", "blk.2.b", "blk.10.a"]
    assert sorted(names, key=file_order) == ordered


def test_a_reason_says_which_rule_and_why() -> None:
    planned = plan_one("Q4_K_M", "blk.7.ffn_up.weight")
    assert planned.rule == "base"
    assert planned.reason == "the base type of Q4_K_M"
    plan = make_plan(tensors(*(f"blk.{i}.ffn_down.weight" for i in range(8))), describe(), find_recipe("Q4_K_M"))
    assert [it.type.name for it in plan] == ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert plan[0].rule == "Q4_K_M[5]"
    assert plan[0].reason == (
        "Q4_K_M gives the feed-forward down projection Q6_K"
        " in the first and last eighth of the layers and in every third between"
    )


def test_a_fallback_says_what_it_costs() -> None:
    planned = plan_one("Q4_K_M", shape=(10, 160))
    assert (planned.wanted.name, planned.type.name) == ("Q4_K", "Q5_0")
    # 10 rows of 5 blocks of 22 bytes, against 1600 weights of 4.5 bits.
    assert planned.nbytes == 1100
    assert planned.fallback_bytes == 1100 - 900
    assert planned.reason.endswith(
        "rows of 160 do not divide into Q4_K blocks of 256, so Q5_0 instead, 200 bytes (22%) more"
    )


def test_fallbacks_go_on_until_one_fits() -> None:
    planned = plan_one("Q6_K", shape=(4, 40))
    assert (planned.wanted.name, planned.type.name) == ("Q6_K", "F16")
    assert planned.fallback_bytes == 4 * 40 * 2 - 4 * 40 * 210 // 256


def test_without_a_fallback_there_is_no_cost() -> None:
    assert plan_one("Q4_K_M").fallback_bytes == 0


def test_fallbacks_can_be_refused() -> None:
    with pytest.raises(UnsupportedError, match="rows of 160 do not divide into Q4_K blocks of 256"):
        plan_one("Q4_K_M", shape=(10, 160), options=PlanOptions(no_fallback=True))
    assert plan_one("Q4_K_M", options=PlanOptions(no_fallback=True)).type.name == "Q4_K"


def test_types_without_fallback_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="Q1_0 blocks of 128"):
        plan_one("Q1_0", shape=(10, 160))


def test_a_type_asked_for_must_fit() -> None:
    options = PlanOptions(token_embedding_type=weight_type("Q4_K"))
    with pytest.raises(UsageError, match=r"token_embd.* rows of 160"):
        plan_one("Q8_0", "token_embd.weight", options, shape=(10, 160))


def test_leading_ones_are_no_dimensions() -> None:
    assert plan_one("Q8_0", shape=(1, 256)).rule == "keep"
    assert plan_one("Q8_0", shape=(1, 1, 256)).rule == "keep"
    assert plan_one("Q8_0", shape=(2, 1, 256)).type.name == "Q8_0"


def test_overrides_are_searched_in_order() -> None:
    options = PlanOptions(overrides=[parse_override("ATTN_[QK]=q8_0"), parse_override("blk=Q4_0")])
    names = ("blk.0.attn_q.weight", "blk.0.attn_v.weight")
    plan = make_plan(tensors(*names), describe(), find_recipe("Q2_K"), options)
    assert [it.type.name for it in plan] == ["Q8_0", "Q4_0"]
    assert plan[0].rule == "override"
    assert plan[0].reason == "Q8_0 is requested for tensors matching 'attn_[qk]'"


@pytest.mark.parametrize("recipe", ["F32", "F16", "BF16"])
def test_overrides_work_for_every_base_type(recipe: str) -> None:
    planned = plan_one(recipe, options=PlanOptions(overrides=[parse_override("attn=Q8_0")]))
    assert planned.type.name == "Q8_0"


def test_an_override_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="'nothing_like_it' matches no tensor"):
        plan_one("Q8_0", options=PlanOptions(overrides=[parse_override("nothing_like_it=Q8_0")]))


@pytest.mark.parametrize(("recipe", "type"), [("F32", "F32"), ("F16", "BF16"), ("Q4_K_M", "BF16")])
def test_what_is_never_quantized_is_widened_only_where_all_is(recipe: str, type: str) -> None:
    assert plan_one(recipe, "dec.blk.0.attn_rel_b.weight", shape=(32, 8)).type.name == type


def test_copying_takes_no_overrides() -> None:
    with pytest.raises(UsageError, match="COPY"):
        plan_one("COPY", options=PlanOptions(overrides=[parse_override("attn=Q8_0")]))


@pytest.mark.parametrize("text", ["attn", "=Q8_0", "attn=", "attn=Q9", "(=Q8_0", "attn=Q8_K", "attn=I32"])
def test_malformed_overrides(text: str) -> None:
    with pytest.raises(UsageError):
        parse_override(text)


def test_a_file_of_overrides() -> None:
    found = parse_overrides("attn_v=Q8_0 ffn=Q4_K\n\n  output=F16\n")
    assert [(it.pattern.pattern, it.type.name) for it in found] == [("attn_v", "Q8_0"), ("ffn", "Q4_K"), ("output", "F16")]


def test_importance_is_required_where_the_reference_refuses() -> None:
    plan = make_plan(tensors("blk.0.attn_q.weight", "blk.0.ffn_up.weight"), describe(), find_recipe("IQ2_XXS"))
    with pytest.raises(UsageError, match=r"'blk\.0\.attn_q\.weight' and 1 more: IQ2_XXS needs importance values"):
        check_plan(plan)
    options = PlanOptions(importance={"blk.0.attn_q.weight": 256})
    plan = make_plan(tensors("blk.0.attn_q.weight", "blk.0.ffn_up.weight"), describe(), find_recipe("IQ2_XXS"), options)
    with pytest.raises(UsageError, match=r"'blk\.0\.ffn_up\.weight': .* has none for it"):
        check_plan(plan, options)
    assert [it.name for it in without_importance(plan)] == ["blk.0.ffn_up.weight"]


def test_an_embedding_needs_no_importance() -> None:
    check_plan(make_plan(tensors("token_embd.weight"), describe(), find_recipe("Q2_K_S")))
    check_plan(make_plan(tensors("output.weight"), describe(), find_recipe("IQ2_XXS"), PlanOptions(pure=True)))


def test_importance_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"attn_q.* has 128 values, not 256"):
        plan_one("Q4_K_M", options=PlanOptions(importance={"blk.0.attn_q.weight": 128}))
    options = PlanOptions(importance={"token_embd.weight": 128})
    assert not plan_one("Q4_K_M", "token_embd.weight", options).importance


def test_each_expert_has_its_importance() -> None:
    options = PlanOptions(importance={"blk.0.ffn_up_exps.weight": 3 * 256})
    assert plan_one("Q4_K_M", "blk.0.ffn_up_exps.weight", options, shape=(3, 8, 256)).importance


def test_floats_take_no_importance() -> None:
    assert not plan_one("F16", options=PlanOptions(importance={"blk.0.attn_q.weight": 256})).importance


def test_quantizing_twice_takes_leave() -> None:
    plan = make_plan(tensors("blk.0.attn_q.weight", type="Q8_0"), describe(), find_recipe("Q4_0"))
    with pytest.raises(UsageError, match="already quantized, to Q8_0"):
        check_plan(plan)
    check_plan(plan, PlanOptions(allow_requantize=True))
    check_plan(make_plan(tensors("blk.0.attn_q.weight", type="Q8_0"), describe(), find_recipe("Q8_0")))


def test_whole_numbers_are_not_quantized() -> None:
    plan = make_plan(tensors("blk.0.attn_q.weight", type="I32"), describe(), find_recipe("Q8_0"))
    with pytest.raises(UnsupportedError, match="no conversion from I32 to Q8_0"):
        check_plan(plan)


def test_copying_changes_nothing_and_refuses_nothing() -> None:
    for type in ("F32", "Q8_0", "IQ2_XXS", "I32"):
        plan = make_plan(tensors("blk.0.attn_q.weight", type=type), describe(), find_recipe("COPY"))
        check_plan(plan)
        assert plan[0].type.name == type


def test_an_expert_whose_name_tells_no_layer_is_refused() -> None:
    metadata = describe(expert_count=4)
    with pytest.raises(ModelError, match="no layer number from 0 to 7"):
        make_plan(tensors("blk.8.ffn_down_exps.weight"), metadata, find_recipe("Q4_K_M"))


def test_numbers_may_be_per_layer() -> None:
    metadata = describe() | {"llama.attention.head_count_kv": array(ValueType.INT32, [1, 4, 4])}
    (planned,) = make_plan(tensors("blk.0.attn_v.weight"), metadata, find_recipe("Q2_K"))
    assert planned.type.name == "Q4_K"


@pytest.mark.parametrize("entry", [string("many"), array(ValueType.INT32, [])])
def test_what_is_no_number_is_named(entry: Any) -> None:
    with pytest.raises(ModelError, match=r"llama\.block_count is"):
        make_plan(tensors("blk.0.attn_v.weight"), describe() | {"llama.block_count": entry}, find_recipe("Q2_K"))


def test_an_unknown_model_is_planned_by_names() -> None:
    (planned,) = make_plan(tensors("output.weight"), {}, find_recipe("Q4_K_M"))
    assert planned.type.name == "Q6_K"
