"""Cases of decoders with the tensors of a llama, biases and head norms apart: Qwen, SmolLM, Granite, ERNIE ..."""

from __future__ import annotations

from typing import Any

from architecture_shapes import FACTORS, LLAMA3, YARN, Case, configured, family, llama_case, with_layers, without


def qwen_case(directory: str, version: int, changes: Case, **more: Any) -> Case:
    """A Qwen 2, with biases, or a Qwen 3, with norms of queries and keys."""
    kind = f"qwen{version}"
    case = llama_case(
        directory,
        {"architectures": [f"Qwen{version}ForCausalLM"], "model_type": kind, "rms_norm_eps": 1e-6, **changes},
        shaped={"head_dim": changes.get("head_dim", 128 if version == 3 else None)},
        **more,
    )
    for name, (dtype, shape) in list(case["tensors"].items()):
        if version == 2 and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            case["tensors"][name.replace("weight", "bias")] = [dtype, shape[:1]]
        if version == 3 and name.endswith(("q_proj.weight", "k_proj.weight")):
            head_dim = changes.get("head_dim", 128)
            case["tensors"][name.replace("_proj", "_norm")] = [dtype, [head_dim]]
    return case | {"tensors": dict(sorted(case["tensors"].items()))}


MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
}


def granite_case(directory: str, changes: Case) -> Case:
    """A Granite."""
    return family("GraniteForCausalLM", "granite", directory, changes)


def seed_case(directory: str, changes: Case) -> Case:
    """A Seed-OSS: biases on queries, keys and values."""
    case = family("SeedOssForCausalLM", "seed_oss", directory, {"attention_bias": True, "head_dim": 16, **changes})
    return case if changes.get("attention_out_bias") else without(case, "o_proj.bias")


def minicpm_case(directory: str, changes: Case) -> Case:
    """A MiniCPM."""
    return family(
        "MiniCPMForCausalLM", "minicpm", directory, {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32, **changes}
    )


def ernie_case(directory: str, changes: Case) -> Case:
    """An ERNIE 4.5."""
    changes = {"head_dim": 16, "tie_word_embeddings": True, **changes}
    biases = {"attention_bias": changes.get("use_bias"), "mlp_bias": changes.get("use_bias")}
    return family("Ernie4_5ForCausalLM", "ernie4_5", directory, changes, shaped=biases)


CASES: dict[str, Case] = {
    "qwen2": qwen_case("Qwen2.5-0.5B-Instruct", 2, {"rope_theta": 1000000.0}),
    "qwen2-tied": qwen_case("qwen-yarn", 2, {"tie_word_embeddings": True, "rope_scaling": YARN, "head_dim": 32}),
    "qwen2-null-keys": configured(
        with_layers(
            family("Qwen2ForCausalLM", "qwen2", "qwen2-null", {"num_key_value_heads": 4}),
            {f"self_attn.{part}_proj.bias": [64] for part in "qkv"},
        ),
        num_key_value_heads=None, sliding_window=None, rope_scaling=None,
    ),
    "qwen3": qwen_case("Qwen3-0.6B", 3, {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-sparse-config": qwen_case("Qwen3-sparse", 3, {"max_position_embeddings": None, "rope_theta": None}),
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
    "granite": granite_case("granite-3.3-2b-instruct", {**MULTIPLIERS, "attention_bias": True, "mlp_bias": True}),
    "granite-sparse-config": granite_case(
        "granite", {"num_key_value_heads": None, "rms_norm_eps": None, "tie_word_embeddings": True, "logits_scaling": 0.0}
    ),
    "granite-head-dim": granite_case("granite-wide", {**MULTIPLIERS, "head_dim": 32, "rope_scaling": YARN}),
    "minicpm": minicpm_case("MiniCPM-2B-sft-bf16", {"tie_word_embeddings": True}),
    "minicpm-long": minicpm_case(
        "MiniCPM-1B", {"rope_scaling": FACTORS, "num_key_value_heads": None, "num_hidden_layers": 3}
    ),
    "ernie4_5": ernie_case("ERNIE-4.5-0.3B-PT", {"rope_theta": 500000.0}),
    "ernie4_5-biases": ernie_case("ernie", {"use_bias": True, "tie_word_embeddings": False, "head_dim": 24}),
    "ministral3-sparse-config": family(
        "Ministral3ForCausalLM", "ministral3", "ministral",
        {"head_dim": 32, "rope_theta": None, "max_position_embeddings": None},
    ),
    "arcee": without(
        family("ArceeForCausalLM", "arcee", "AFM-4.5B", {"rope_theta": 10000.0, "attention_bias": True, "mlp_bias": True}),
        "gate_proj.weight", "gate_proj.bias",
    ),
}  # fmt: skip
