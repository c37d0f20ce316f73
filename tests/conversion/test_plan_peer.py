"""Plans equal llama-quantize's for models and options made up here, well beyond the golden ones."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_quantize import reference_plan, write_hollow_model

from quantcli.architectures.loader import find_architecture
from quantcli.conversion.plan import PlanOptions, check_plan, make_plan, parse_override, weight_type
from quantcli.conversion.recipes import RECIPES, find_recipe
from quantcli.core.block_types import TYPES
from quantcli.core.errors import QuantcliError
from quantcli.formats.gguf.spec import Metadata, ValueType, array, f32, string, u32
from quantcli.tensors.tensor import TensorInfo

gguf = pytest.importorskip("gguf", reason="writes the models")
llama_cpp = pytest.importorskip("llama_cpp", reason="is the reference")

ARCHITECTURE_GOLDENS = Path(__file__).parents[1] / "golden/architectures"
ODD_NAMES = (
    "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight", "per_layer_model_proj.weight",
    "altup_proj.weight", "v.position_embd.weight", "v.patch_embd.weight", "mm.patch_merger.weight",
    "sam.neck.0.weight", "a.rvq.codebook.weight", "v.blk.0.attn_v.weight", "v.blk.0.ffn_down.weight",
    "enc.blk.0.attn_rel_b.weight", "dec.blk.0.cross_attn_v.weight", "rope_freqs.weight", "blk.0.ffn_gate_inp.weight",
    "blk.0.ffn_gate_inp_shexp.weight", "blk.0.ssm_conv1d.weight", "blk.0.shortconv.conv.weight",
    "blk.0.shortconv.in_proj.weight", "blk.0.time_mix_w1.weight", "blk.0.time_mix_lerp_fused.weight",
    "blk.0.time_mix_key.weight", "blk.0.time_mix_decay_w2.weight", "blk.0.laurel_l.weight", "blk.0.attn_kv_b.weight",
    "blk.0.attn_qkv.weight", "blk.0.attn_q_a.weight", "blk.0.indexer.k_proj.weight", "blk.0.indexer.attn_k.weight",
    "blk.0.ffn_down.bias", "blk.0.ffn_up_shexp.weight", "blk.0.attn_k_b.weight", "blk.0.nextn.eh_proj.weight",
    "blk.0.hc_attn_fn.weight", "blk.1.attn_output.scale", "cls.weight", "blk.0.attn_v_b.weight",
)  # fmt: skip


def describe(architecture: str, blocks: int, heads: int, groups: Any, experts: int, width: int) -> Metadata:
    """The metadata llama.cpp needs to know a model by."""
    numbers = {
        "block_count": blocks, "context_length": 128, "embedding_length": width, "feed_forward_length": 2 * width,
        "attention.head_count": heads, "expert_count": experts, "expert_used_count": min(experts, 2), "vocab_size": 96,
    }  # fmt: skip
    metadata = {"general.architecture": string(architecture)}
    metadata |= {f"{architecture}.{key}": u32(value) for key, value in numbers.items() if value}
    if groups is not None:
        per_layer = isinstance(groups, list)
        metadata[f"{architecture}.attention.head_count_kv"] = array(ValueType.INT32, groups) if per_layer else u32(groups)
    metadata[f"{architecture}.attention.layer_norm_rms_epsilon"] = f32(1e-5)
    metadata[f"{architecture}.attention.layer_norm_epsilon"] = f32(1e-5)
    return metadata


def layer_tensors(block: int, width: int, experts: int, fused: bool, type: str) -> list[TensorInfo]:
    """The tensors of a decoder's layer."""
    kind = TYPES[type]
    prefix, suffix, stack = f"blk.{block}", "_exps" if experts else "", (experts,) if experts else ()
    attention = ["attn_qkv"] if fused else ["attn_q", "attn_k", "attn_v"]
    tensors = [TensorInfo(f"{prefix}.{name}.weight", (width // 2, width), kind) for name in (*attention, "attn_output")]
    tensors += [TensorInfo(f"{prefix}.ffn_{name}{suffix}.weight", (*stack, 8, width), kind) for name in ("gate", "up")]
    tensors.append(TensorInfo(f"{prefix}.ffn_down{suffix}.weight", (*stack, width, 2 * width), kind))
    if experts:
        tensors.append(TensorInfo(f"{prefix}.ffn_gate_inp.weight", (experts, width), TYPES["F32"]))
    return [*tensors, TensorInfo(f"{prefix}.attn_norm.weight", (width,), TYPES["F32"])]


def invent(
    architecture: str = "llama",
    *,
    blocks: int = 4,
    depth: int | None = None,
    heads: int = 4,
    groups: int | list[int] | None = None,
    experts: int = 0,
    width: int = 256,
    tied: bool = False,
    fused: bool = False,
    type: str = "F32",
    names: Sequence[str] = (),
    further: Metadata | None = None,
) -> tuple[Metadata, list[TensorInfo]]:
    """A decoder of these proportions, and further tensors by `names`; `depth` is what the metadata call its blocks."""
    tensors = [
        TensorInfo("token_embd.weight", (96, width), TYPES[type]),
        TensorInfo("output_norm.weight", (width,), TYPES["F32"]),
    ]
    tensors += [] if tied else [TensorInfo("output.weight", (96, width), TYPES[type])]
    for block in range(blocks):
        tensors += layer_tensors(block, width, experts, fused, type)
    present = {tensor.name for tensor in tensors}
    # Projections of latent attention are stacked like experts, and are none.
    shapes = {name: (3, 8, width) if name.endswith("_b.weight") else (8, width) for name in names}
    tensors += [TensorInfo(name, shape, TYPES[type]) for name, shape in shapes.items() if name not in present]
    metadata = describe(architecture, depth or blocks, heads, groups, experts, width)
    metadata |= {f"{architecture}.{key}": entry for key, entry in (further or {}).items()}
    return metadata, tensors


LATENT_ATTENTION: Metadata = {
    "attention.key_length_mla": u32(64),
    "attention.value_length_mla": u32(64),
    "attention.q_lora_rank": u32(64),
    "attention.kv_lora_rank": u32(64),
    "ssm.conv_kernel": u32(4),
    "kda.head_dim": u32(64),
    "kda.gate_lower_bound": f32(-5.0),
    "expert_feed_forward_length": u32(64),
    "expert_shared_count": u32(1),
    "leading_dense_block_count": u32(1),
    "expert_gating_func": u32(2),
}
GLM5 = LATENT_ATTENTION | {
    "attention.indexer.head_count": u32(4),
    "attention.indexer.key_length": u32(64),
    "attention.indexer.top_k": u32(64),
    "attention.indexer.kpool": u32(4),
    "hyper_connection.count": u32(4),
    "hyper_connection.sinkhorn_iterations": u32(2),
    "hyper_connection.epsilon": f32(1e-6),
}
ADAPTERS: Metadata = {
    "logit_scale": f32(1.0),
    "adapters.count": u32(1),
    "adapters.lora_rank": u32(4),
    "adapters.token_ids_activate": array(ValueType.INT32, [1]),
    "adapters.token_ids_substitute": array(ValueType.INT32, [2]),
}

BLOCK_NAMES = [name for name in ODD_NAMES if not name.startswith("v.blk")]
MODELS = {
    "one layer": invent(blocks=1),
    "seven layers": invent(blocks=7, heads=8, groups=2),
    "seventeen layers, tied": invent(blocks=17, heads=12, groups=4, tied=True),
    "rows of 64": invent(blocks=9, width=64, tied=True),
    "rows of 288": invent(blocks=9, width=288),
    "rows of 172": invent(blocks=5, width=172),
    "rows of 384": invent(blocks=8, width=384, tied=True),
    "odd names": invent(names=ODD_NAMES),
    "odd names, experts": invent(blocks=8, experts=4, names=BLOCK_NAMES),
    "odd names, tied": invent(tied=True, names=ODD_NAMES),
    "falcon 7B": invent("falcon", blocks=32, heads=71, groups=1, fused=True),
    "falcon, separate": invent("falcon", blocks=35, heads=8, groups=8, tied=True),
    "falcon with experts": invent("falcon", blocks=16, heads=8, groups=1, experts=8),
    "llama 65B": invent(blocks=11, depth=80, heads=64, groups=64),
    "llama 70B": invent(blocks=11, depth=80, heads=64, groups=8),
    "llama 70B, three groups": invent(blocks=11, depth=80, heads=6, groups=3),
    "llama 80 layers, 8 experts": invent(blocks=11, depth=80, heads=8, groups=2, experts=8),
    "qwen2 72B": invent("qwen2", blocks=11, depth=80, heads=64, groups=8),
    "qwen2 72B, ungrouped": invent("qwen2", blocks=11, depth=80, heads=64),
    "olmo 70B": invent("olmo", blocks=11, depth=80, heads=8, groups=8),
    "deci 70B": invent("deci", blocks=11, depth=80, heads=8, groups=[2] * 80),
    "jais2 70B": invent("jais2", blocks=11, depth=68, heads=8, groups=4),
    "eight experts": invent(blocks=24, heads=8, groups=4, experts=8),
    "eight experts, tied": invent(blocks=33, heads=8, groups=1, experts=8, tied=True),
    "four experts": invent(blocks=12, heads=4, experts=4),
    "sixty experts": invent("qwen2moe", blocks=6, heads=4, experts=60),
    "nanbeige": invent("nanbeige", blocks=5, further={"num_loops": u32(3)}),
    "granite switch": invent("graniteswitch", blocks=15, heads=8, further=ADAPTERS),
    "glm5": invent("glm5-next", blocks=9, experts=16, names=BLOCK_NAMES, further=GLM5),
    "bailing": invent("bailingmoe3", blocks=9, experts=16, names=BLOCK_NAMES, further=LATENT_ATTENTION),
    "bf16": invent(blocks=3, type="BF16"),
    "f16": invent(blocks=3, type="F16"),
}  # fmt: skip


def sizes_of(tensors: Sequence[TensorInfo]) -> dict[str, int]:
    return {it.name: it.row_length * (it.shape[-3] if len(it.shape) > 2 else 1) for it in tensors}


def our_plan(
    metadata: Metadata, tensors: Sequence[TensorInfo], recipe: str, options: PlanOptions, *, checked: bool = False
) -> list[tuple[str, str]] | None:
    """As `reference_plan`; `checked` for a run that is not dry."""
    try:
        plan = make_plan(tensors, metadata, find_recipe(recipe), options)
        if checked:
            check_plan(plan, options)
    except QuantcliError:
        return None
    return [(tensor.name, tensor.type.name) for tensor in plan]


def compare(path: Path, metadata: Metadata, tensors: Sequence[TensorInfo], recipe: str, options: PlanOptions) -> None:
    expected = reference_plan(llama_cpp, path, RECIPES[recipe], options)
    assert our_plan(metadata, tensors, recipe, options) == expected


@pytest.mark.parametrize("model", MODELS)
def test_every_recipe(model: str, tmp_path: Path) -> None:
    metadata, tensors = MODELS[model]
    path = tmp_path / "model.gguf"
    write_hollow_model(path, metadata, tensors, gguf)
    assert reference_plan(llama_cpp, path, RECIPES["COPY"], PlanOptions()), "the reference does not read the model"
    for recipe in RECIPES:
        compare(path, metadata, tensors, recipe, PlanOptions())
        compare(path, metadata, tensors, recipe, PlanOptions(importance=sizes_of(tensors)))


OPTIONS = {
    "pure": PlanOptions(pure=True),
    "leave output": PlanOptions(leave_output_tensor=True),
    "output type": PlanOptions(output_tensor_type=weight_type("Q5_1")),
    "embedding type": PlanOptions(token_embedding_type=weight_type("Q3_K")),
    "both types, pure": PlanOptions(
        output_tensor_type=weight_type("F16"), token_embedding_type=weight_type("BF16"), pure=True
    ),
    "values": PlanOptions(overrides=[parse_override("attn_v=Q8_0")]),
    "some down": PlanOptions(overrides=[parse_override(r"blk\.[0-3]\.ffn_down=Q6_K")]),
    "first wins": PlanOptions(overrides=[parse_override("blk.1=q4_0"), parse_override("blk=iq4_nl")]),
    "everything": PlanOptions(overrides=[parse_override(".*=Q2_K")]),
    "everything, 256": PlanOptions(overrides=[parse_override(".*=IQ4_XS")], output_tensor_type=weight_type("Q8_0")),
    "per layer": PlanOptions(overrides=[parse_override("per_layer|norm=Q5_0")], token_embedding_type=weight_type("Q8_0")),
}  # fmt: skip


@pytest.mark.parametrize("asked", OPTIONS)
@pytest.mark.parametrize("model", ["odd names", "odd names, tied", "seventeen layers, tied", "eight experts"])
def test_options(model: str, asked: str, tmp_path: Path) -> None:
    metadata, tensors = MODELS[model]
    options = OPTIONS[asked]
    path = tmp_path / "model.gguf"
    write_hollow_model(path, metadata, tensors, gguf)
    assert reference_plan(llama_cpp, path, RECIPES["COPY"], PlanOptions()), "the reference does not read the model"
    for name, recipe in RECIPES.items():
        # There llama-quantize takes no notice of patterns.
        if options.overrides and not (recipe.base and recipe.base.is_quantized):
            continue
        if any(not any(entry.pattern.search(tensor.name) for tensor in tensors) for entry in options.overrides):
            pytest.skip("a pattern that matches nothing is an error here")
        compare(path, metadata, tensors, name, options)


@pytest.mark.parametrize("seed", range(20))
def test_models_made_up_by_chance(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    heads = chance.choice([1, 2, 4, 6, 8, 32])
    metadata, tensors = invent(
        chance.choice(["llama", "falcon", "qwen2", "olmo", "llama-embed"]),
        blocks=chance.randint(1, 90),
        heads=heads,
        groups=chance.choice([None, 1, heads, max(1, heads // 4)]),
        experts=chance.choice([0, 0, 2, 4, 8, 16]),
        width=chance.choice([32, 48, 96, 128, 256, 512]),
        tied=chance.random() < 0.5,
        fused=chance.random() < 0.3,
        type=chance.choice(["F32", "F16", "BF16"]),
    )
    # Models lack tensors in some layers, and have more than one of a role in others.
    tensors = [tensor for tensor in tensors if chance.random() < 0.9]
    tensors += [
        TensorInfo(f"blk.0.{name}.weight", (8, 64), TYPES["F32"])
        for name in ("ffn_down_shexp", "cross_attn_v", "attn_q_norm", "ffn_gate_shexp")
        if chance.random() < 0.5
    ]
    path = tmp_path / "model.gguf"
    write_hollow_model(path, metadata, tensors, gguf)
    assert reference_plan(llama_cpp, path, RECIPES["COPY"], PlanOptions()), "the reference does not read the model"
    present = {tensor.name for tensor in tensors}
    patterns = [text for text in ("attn_[kv]=Q8_0", "ffn_down=Q5_K", "blk.0=TQ2_0") if chance.random() < 0.3]
    overrides = [it for it in map(parse_override, patterns) if any(it.pattern.search(name) for name in present)]
    for name in chance.sample(sorted(RECIPES), 12):
        base = RECIPES[name].base
        options = PlanOptions(
            overrides=overrides if base and base.is_quantized else (),
            importance=sizes_of(tensors) if chance.random() < 0.5 else None,
            pure=chance.random() < 0.1,
            leave_output_tensor=chance.random() < 0.2,
        )
        compare(path, metadata, tensors, name, options)


@pytest.mark.parametrize("source", ["F32", "F16", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("requantize", [False, True])
def test_refusals(source: str, requantize: bool, tmp_path: Path) -> None:
    metadata, tensors = invent(blocks=1, type=source)
    path, output = tmp_path / "model.gguf", tmp_path / "output.gguf"
    write_hollow_model(path, metadata, tensors, gguf)
    assert reference_plan(llama_cpp, path, RECIPES["COPY"], PlanOptions()), "the reference does not read the model"
    options = PlanOptions(allow_requantize=requantize)
    for recipe in ("COPY", "F16", "Q8_0", "Q2_K", "Q2_K_S", "Q4_K_S", "IQ3_XXS", "IQ3_XS"):
        expected = reference_plan(llama_cpp, path, RECIPES[recipe], options, output)
        assert our_plan(metadata, tensors, recipe, options, checked=True) == expected, recipe


ARCHITECTURES = (
    "bert-reranker", "nomic-bert-moe", "jina-bert-v2-code", "modern-bert", "t5", "flan-t5", "t5encoder", "mamba",
    "mamba2-groups", "granitehybrid", "lfm2moe", "glm4moe", "qwen3vlmoe",
)  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_that_are_no_plain_decoders(name: str, tmp_path: Path):
    golden = json.loads((ARCHITECTURE_GOLDENS / f"{name}.json").read_text())
    config = golden["checkpoint"]["config"]
    architecture = find_architecture(config)
    metadata = architecture.early_metadata(config) | architecture.metadata(config, 0)
    metadata |= {f"{architecture.gguf}.vocab_size": u32(512), "tokenizer.ggml.model": string("none")}
    tensors = [TensorInfo(tensor, tuple(shape), TYPES["F32"]) for tensor, _, shape, _ in golden["f32"]["tensors"]]
    write_hollow_model(tmp_path / "model.gguf", metadata, tensors, gguf)
    for recipe in ("Q4_K_M", "Q2_K", "Q5_0", "IQ4_XS"):
        planned = make_plan(tensors, metadata, RECIPES[recipe], PlanOptions())
        expected = reference_plan(llama_cpp, tmp_path / "model.gguf", RECIPES[recipe], PlanOptions())
        assert [(tensor.name, tensor.type.name) for tensor in planned] == expected
