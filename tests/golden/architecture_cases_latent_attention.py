"""Cases of decoders with multi-head latent attention (MLA): DeepSeek V2 and V3, MiniCPM 3."""

from __future__ import annotations

from architecture_cases_mixture_of_experts import deepseek_case
from architecture_shapes import ATTENTION, FACTORS, YARN, Case, configured, family, merged, with_layers, without


def deepseek2_case(
    directory: str,
    changes: Case,
    version: int = 2,
    dense: int = 1,
    experts: int = 6,
    shared: int = 2,
    queries: int | None = 28,
) -> Case:
    """A DeepSeek V2 or V3: keys and values by way of a narrow projection, queries perhaps by way of another."""
    sizes = {
        "n_routed_experts": experts, "n_shared_experts": shared, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "first_k_dense_replace": dense, "moe_layer_freq": 1, "q_lora_rank": queries, "kv_lora_rank": 20,
        "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "num_key_value_heads": 4, **changes,
    }  # fmt: skip
    case = family(f"DeepseekV{version}ForCausalLM", f"deepseek_v{version}", directory, sizes)
    case["config"]["q_lora_rank"] = queries
    attention = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
    heads, key, value, rank = case["config"]["num_attention_heads"], sizes["qk_nope_head_dim"], sizes["v_head_dim"], 20
    shapes = {
        "self_attn.kv_a_proj_with_mqa.weight": [rank + 8, 64],
        "self_attn.kv_a_layernorm.weight": [rank],
        "self_attn.kv_b_proj.weight": [heads * (key + value), rank],
        "self_attn.o_proj.weight": [64, heads * value],
    }
    if queries is None:
        shapes["self_attn.q_proj.weight"] = [heads * (key + 8), 64]
    else:
        shapes["self_attn.q_a_proj.weight"] = [queries, 64]
        shapes["self_attn.q_a_layernorm.weight"] = [queries]
        shapes["self_attn.q_b_proj.weight"] = [heads * (key + 8), queries]
    return deepseek_case(with_layers(without(case, *attention), shapes), dense, experts, shared)


def deepseek3_case(directory: str, changes: Case) -> Case:
    """A DeepSeek V3: experts chosen with a correction, and a layer more for predicting the token after the next."""
    changes = {
        "topk_method": "noaux_tc", "scoring_func": "sigmoid", "n_group": 2, "topk_group": 1, "num_nextn_predict_layers": 1,
        "routed_scaling_factor": 2.5, "norm_topk_prob": True, "num_hidden_layers": 3, **changes,
    }  # fmt: skip
    case = deepseek2_case(directory, changes, version=3, shared=1)
    more: Case = {f"model.layers.{layer}.mlp.gate.e_score_correction_bias": ["F32", [6]] for layer in (1, 2)}
    more |= {
        "model.layers.3.enorm.weight": ["BF16", [64]],
        "model.layers.3.mlp.experts.0.up_proj.weight": ["BF16", [24, 64]],
    }
    return merged(case, more)


def with_mla_biases(case: Case) -> Case:
    """A DeepSeek V2 with `attention_bias`."""
    shapes = {"self_attn.q_a_proj.bias": [28], "self_attn.kv_a_proj_with_mqa.bias": [28], "self_attn.o_proj.bias": [64]}
    return with_layers(configured(case, attention_bias=True), shapes)


def minicpm3_case(directory: str, changes: Case) -> Case:
    """A MiniCPM 3: queries, keys and values by way of narrow projections."""
    sizes = {
        "q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
        "num_key_value_heads": 4, "tie_word_embeddings": True, **changes,
    }  # fmt: skip
    case = family("MiniCPM3ForCausalLM", "minicpm3", directory, sizes)
    case = without(case, *(f"{part}.weight" for part in ATTENTION), "o_proj.weight")
    heads, rank = case["config"]["num_attention_heads"], sizes["kv_lora_rank"]
    return with_layers(
        case,
        {
            "self_attn.q_a_proj.weight": [sizes["q_lora_rank"], 64],
            "self_attn.q_a_layernorm.weight": [sizes["q_lora_rank"]],
            "self_attn.q_b_proj.weight": [heads * (sizes["qk_nope_head_dim"] + 8), sizes["q_lora_rank"]],
            "self_attn.kv_a_proj_with_mqa.weight": [rank + 8, 64],
            "self_attn.kv_a_layernorm.weight": [rank],
            "self_attn.kv_b_proj.weight": [heads * (sizes["qk_nope_head_dim"] + sizes["v_head_dim"]), rank],
            "self_attn.o_proj.weight": [64, heads * sizes["v_head_dim"]],
        },
    )


MSCALE = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.707}

SHORT = {**FACTORS, "short_factor": [1.0, 1.1, 1.2, 1.5], "long_factor": [1.0, 2.5, 6.25, 15.0]}

CASES: dict[str, Case] = {
    "deepseek2-raw-config": deepseek2_case("deepseek2-raw", {"model_type": "deepseek_of_mine", "rope_scaling": YARN}),
    "deepseek2-biases": with_mla_biases(deepseek2_case("deepseek2-biased", {})),
    "deepseek2": deepseek2_case("DeepSeek-V2", {"rope_scaling": MSCALE, "routed_scaling_factor": 16.0}),
    "deepseek2-lite": deepseek2_case(
        "DeepSeek-V2-Lite", {"n_group": 1, "topk_group": 1, "scoring_func": "softmax", "num_attention_heads": 2,
                             "num_key_value_heads": 2}, queries=None,
    ),
    "deepseek2-square": deepseek2_case("square", {"qk_nope_head_dim": 10, "tie_word_embeddings": True}, dense=0, experts=4),
    "deepseek3": deepseek3_case("DeepSeek-V3", {"rope_scaling": {**MSCALE, "mscale_all_dim": 1.0}}),
    "deepseek3-sparse-config": deepseek3_case("DeepSeek-R1", {"rope_theta": None, "rms_norm_eps": None}),
    "minicpm3": minicpm3_case("MiniCPM3-4B", {"rope_scaling": SHORT}),
    "minicpm3-untied": minicpm3_case("minicpm3", {"tie_word_embeddings": False, "qk_nope_head_dim": 16, "v_head_dim": 16}),
}  # fmt: skip
