"""Cases of families that vary the llama in their own ways: OLMo, Granite, Command R and others."""

from __future__ import annotations

from typing import Any

from architecture_cases import LLAMA3, YARN, Case, llama_case
from architecture_cases_llama_like import PROJECTIONS, with_experts


def without(case: Case, *endings: str) -> Case:
    """The case without the tensors whose names end so."""
    return case | {"tensors": {name: kind for name, kind in case["tensors"].items() if not name.endswith(endings)}}


def with_layers(case: Case, shapes: dict[str, list[int]]) -> Case:
    """The case with more BF16 tensors in every layer, by what follows `model.layers.N.`."""
    layers = range(case["config"]["num_hidden_layers"])
    more = {f"model.layers.{layer}.{name}": ["BF16", shape] for layer in layers for name, shape in shapes.items()}
    return case | {"tensors": dict(sorted({**case["tensors"], **more}.items()))}


def family(architecture: str, kind: str, directory: str, changes: Case, **more: Any) -> Case:
    """A llama-shaped case of another class and model type."""
    return llama_case(directory, {"architectures": [architecture], "model_type": kind, **changes}, **more)


def olmo_case(directory: str, changes: Case) -> Case:
    """An OLMo: no norm has a weight."""
    return without(family("OlmoForCausalLM", "olmo", directory, {"rms_norm_eps": None, **changes}), "norm.weight")


def olmo2_case(directory: str, changes: Case, version: int = 2) -> Case:
    """An OLMo 2 or 3: norms after each half, and on whole projections."""
    case = family(f"Olmo{version}ForCausalLM", f"olmo{version}", directory, changes)
    heads, kv_heads = case["config"]["num_attention_heads"], case["config"].get("num_key_value_heads")
    head_dim = case["config"].get("head_dim", 64 // heads)
    return with_layers(
        without(case, "input_layernorm.weight"),
        {
            "post_feedforward_layernorm.weight": [64],
            "self_attn.q_norm.weight": [heads * head_dim],
            "self_attn.k_norm.weight": [(kv_heads or heads) * head_dim],
        },
    )


def olmoe_case(directory: str, changes: Case, experts: int = 5) -> Case:
    """An OLMoE."""
    changes = {"num_experts": experts, "num_experts_per_tok": 2, **changes}
    case = family("OlmoeForCausalLM", "olmoe", directory, changes)
    case = with_experts(case, "mlp", PROJECTIONS, experts, case["config"]["intermediate_size"])
    heads, kv_heads = case["config"]["num_attention_heads"], case["config"].get("num_key_value_heads")
    shapes = {"q": [64], "k": [(kv_heads or heads) * 64 // heads]}
    return with_layers(case, {f"self_attn.{name}_norm.weight": shape for name, shape in shapes.items()})


MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
}


def granite_case(directory: str, changes: Case) -> Case:
    """A Granite."""
    return family("GraniteForCausalLM", "granite", directory, changes)


def granitemoe_case(directory: str, changes: Case, experts: int = 4, shared: int = 0) -> Case:
    """A Granite MoE; with a shared expert of a class of its own."""
    name, kind = ("GraniteMoeSharedForCausalLM", "granitemoeshared") if shared else ("GraniteMoeForCausalLM", "granitemoe")
    changes = {"num_local_experts": experts, "num_experts_per_tok": 2, **MULTIPLIERS, **changes}
    case = family(name, kind, directory, changes | ({"shared_intermediate_size": shared} if shared else {}))
    case = without(case, "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
    moe = {
        "block_sparse_moe.router.layer.weight": [experts, 64],
        "block_sparse_moe.input_linear.weight": [experts, 192, 64],
        "block_sparse_moe.output_linear.weight": [experts, 64, 96],
    }
    more = {"shared_mlp.input_linear.weight": [2 * shared, 64], "shared_mlp.output_linear.weight": [64, shared]}
    return with_layers(case, moe | (more if shared else {}))


def cohere_case(directory: str, changes: Case, version: str = "") -> Case:
    """A Command R: one norm per layer, embeddings that are also the output."""
    changes = {"rms_norm_eps": None, "layer_norm_eps": 1e-5, "tie_word_embeddings": True, **changes}
    case = family(f"Cohere{version}ForCausalLM", f"cohere{version}", directory, changes)
    case = without(case, "post_attention_layernorm.weight")
    norms = {"self_attn.q_norm.weight": [4, 16], "self_attn.k_norm.weight": [2, 16]}
    return with_layers(case, norms if changes.get("use_qk_norm") else {})


def seed_case(directory: str, changes: Case) -> Case:
    """A Seed-OSS: biases on queries, keys and values."""
    case = family("SeedOssForCausalLM", "seed_oss", directory, {"attention_bias": True, "head_dim": 16, **changes})
    return case if changes.get("attention_out_bias") else without(case, "o_proj.bias")


CASES: dict[str, Case] = {
    "olmo": olmo_case("OLMo-1.7-7B-hf", {"clip_qkv": 8.0}),
    "olmo-tied": olmo_case("OLMo-1B-hf", {"tie_word_embeddings": True, "num_key_value_heads": None, "clip_qkv": None}),
    "olmo2": olmo2_case("OLMo-2-1124-7B-Instruct", {"rope_theta": 500000}),
    "olmo2-sparse-config": olmo2_case(
        "olmo2", {"rms_norm_eps": None, "max_position_embeddings": None, "rope_theta": None, "num_key_value_heads": None}
    ),
    "olmo3": olmo2_case(
        "Olmo-3-7B-Think",
        {"sliding_window": 1024, "num_hidden_layers": 5, "rope_scaling": {**YARN, "rope_type": "yarn"},
         "layer_types": [*["sliding_attention"] * 3, "full_attention", "full_attention"]},
        version=3,
    ),
    "olmo3-sparse-config": olmo2_case(
        "olmo3", {"rope_theta": None, "num_hidden_layers": 4, "num_attention_heads": 8, "tie_word_embeddings": True},
        version=3,
    ),
    "olmoe": olmoe_case("OLMoE-1B-7B-0924", {"num_key_value_heads": 4, "clip_qkv": None, "norm_topk_prob": False}),
    "olmoe-tied": olmoe_case(
        "olmoe", {"tie_word_embeddings": True, "rms_norm_eps": 1e-6, "intermediate_size": 32, "attention_bias": True},
        experts=11,
    ),
    "olmoe-yarn": olmoe_case("olmoe-yarn", {"rope_scaling": YARN}, experts=3),
    "granite": granite_case("granite-3.3-2b-instruct", {**MULTIPLIERS, "attention_bias": True, "mlp_bias": True}),
    "granite-sparse-config": granite_case(
        "granite", {"num_key_value_heads": None, "rms_norm_eps": None, "tie_word_embeddings": True, "logits_scaling": 0.0}
    ),
    "granite-head-dim": granite_case("granite-wide", {**MULTIPLIERS, "head_dim": 32, "rope_scaling": YARN}),
    "granitemoe": granitemoe_case("granite-3.1-3b-a800m-instruct", {"tie_word_embeddings": True}),
    "granitemoe-shared": granitemoe_case("granite-moe-shared", {"attention_bias": True}, experts=6, shared=48),
    "command-r": cohere_case(
        "c4ai-command-r-v01", {"model_max_length": 131072, "rope_theta": 8000000.0, "attention_bias": True}
    ),
    "command-r-plus": cohere_case("c4ai-command-r-plus", {"use_qk_norm": True}),
    "command-r-sparse-config": cohere_case("aya-23-8B", {"layer_norm_eps": None, "logit_scale": 0.8, "rope_theta": None}),
    "cohere2": cohere_case(
        "c4ai-command-r7b-12-2024",
        {"rotary_pct": 1.0, "sliding_window": 256, "logit_scale": 0.25, "rope_theta": 50000, "head_dim": 16}, version="2",
    ),
    "cohere2-partial": cohere_case("cohere2", {"rotary_pct": 0.5, "num_attention_heads": 8}, version="2"),
    "smollm3": family("SmolLM3ForCausalLM", "smollm3", "SmolLM3-3B", {"tie_word_embeddings": True, "rope_theta": 5e6}),
    "smollm3-untied": family(
        "SmolLM3ForCausalLM", "smollm3", "smollm3",
        {"attention_bias": True, "mlp_bias": True, "rope_scaling": YARN, "num_attention_heads": 8,
         "num_key_value_heads": None},
        shaped={"num_key_value_heads": 4},
    ),
    "smollm3-llama3": family(
        "SmolLM3ForCausalLM", "smollm3", "smollm3-long",
        {"rope_scaling": LLAMA3, "tie_word_embeddings": True, "head_dim": 32},
    ),
    "seed-oss": seed_case("Seed-OSS-36B-Instruct", {"rope_theta": 10000000.0}),
    "seed-oss-biases": seed_case(
        "seed",
        {"attention_out_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_attention_heads": 6,
         "head_dim": 24},
    ),
}  # fmt: skip
