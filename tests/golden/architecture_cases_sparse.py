"""Cases of families whose layers differ: some with experts, some with convolutions for attention."""

from __future__ import annotations

from architecture_cases import LLAMA3, YARN, Case
from architecture_cases_llama_like import PROJECTIONS, with_experts
from architecture_cases_open import family, with_layers, without

MLP = tuple(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down"))


def merged(case: Case, more: Case) -> Case:
    """The case with more tensors."""
    return case | {"tensors": dict(sorted({**case["tensors"], **more}.items()))}


def in_layers(case: Case, layers: set[int]) -> Case:
    """Of the case's tensors those in these layers; those in no layer are left out."""
    return {
        name: kind
        for name, kind in case["tensors"].items()
        if name.startswith("model.layers.") and int(name.split(".")[2]) in layers
    }


def mlps(parts: dict[str, int], place: str) -> dict[str, list[int]]:
    """The three projections of an MLP, at `place` in a layer, by their inner sizes."""
    return {f"{place}.{part}_proj.weight": [64, inner] if part == "down" else [inner, 64] for part, inner in parts.items()}


def deepseek_case(case: Case, dense: int, experts: int, shared: int, inner: int = 24) -> Case:
    """The case with experts, and beside them shared ones, in the layers after the first `dense`."""
    sparse = with_experts(case, "mlp", PROJECTIONS, experts, inner)
    if shared:
        sparse = with_layers(sparse, mlps(dict.fromkeys(PROJECTIONS, shared * inner), "mlp.shared_experts"))
    layers = range(case["config"]["num_hidden_layers"])
    outside = {name: kind for name, kind in case["tensors"].items() if not name.startswith("model.layers.")}
    inside = in_layers(case, set(layers[:dense])) | in_layers(sparse, set(layers[dense:]))
    return case | {"tensors": dict(sorted({**outside, **inside}.items()))}


def deepseek1_case(directory: str, changes: Case, dense: int = 1, experts: int = 6, shared: int = 2) -> Case:
    """A DeepSeek MoE, whose class transformers does not know."""
    sizes = {
        "n_routed_experts": experts, "n_shared_experts": shared, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "first_k_dense_replace": dense, "moe_layer_freq": 1, "scoring_func": "softmax", **changes,
    }  # fmt: skip
    return deepseek_case(family("DeepseekForCausalLM", "deepseek", directory, sizes), dense, experts, shared)


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


def llama4_case(directory: str, changes: Case, experts: int = 3, every: int = 1) -> Case:
    """A Llama 4: experts in every `every`-th layer, which also have a shared one."""
    changes = {
        "num_local_experts": experts, "num_experts_per_tok": 1, "interleave_moe_layer_step": every, "head_dim": 16,
        "intermediate_size": 48, "intermediate_size_mlp": 96, **changes,
    }  # fmt: skip
    case = without(family("Llama4ForCausalLM", "llama4_text", directory, changes), *MLP)
    dense = with_layers(case, mlps(dict.fromkeys(PROJECTIONS, 96), "feed_forward"))
    moe = {
        "feed_forward.router.weight": [experts, 64],
        "feed_forward.experts.gate_up_proj": [experts, 64, 96],
        "feed_forward.experts.down_proj": [experts, 48, 64],
    }
    sparse = with_layers(case, moe | mlps(dict.fromkeys(PROJECTIONS, 48), "feed_forward.shared_expert"))
    layers = set(range(case["config"]["num_hidden_layers"]))
    with_moe = {layer for layer in layers if (layer + 1) % every == 0}
    return merged(case, in_layers(dense, layers - with_moe) | in_layers(sparse, with_moe))


def llama4_vision_case(directory: str, changes: Case) -> Case:
    """A Llama 4 that sees: the language model is inside, beside a vision model that a text model leaves out."""
    case = llama4_case(directory, changes)
    inner = {key: value for key, value in case["config"].items() if key != "architectures"}
    config = {"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "text_config": inner}
    vision = {
        "multi_modal_projector.linear_1.weight": ["BF16", [64, 32]],
        "vision_model.class_embedding": ["BF16", [32]],
    }
    tensors = {f"language_model.{name}": kind for name, kind in case["tensors"].items()}
    return case | {"config": config, "tensors": dict(sorted({**tensors, **vision}.items()))}


def lfm2_case(directory: str, changes: Case, attention: set[int], inner: int) -> Case:
    """An LFM 2: attention in these layers, convolutions in the others."""
    changes = {"rms_norm_eps": None, "norm_eps": 1e-5, "conv_L_cache": 3, "tie_word_embeddings": True, **changes}
    case = family("Lfm2ForCausalLM", "lfm2", directory, changes)
    tensors: Case = {"model.embed_tokens.weight": ["BF16", [512, 64]], "model.embedding_norm.weight": ["BF16", [64]]}
    for layer in range(case["config"]["num_hidden_layers"]):
        shapes = {
            "operator_norm.weight": [64], "ffn_norm.weight": [64], "feed_forward.w1.weight": [inner, 64],
            "feed_forward.w2.weight": [64, inner], "feed_forward.w3.weight": [inner, 64],
        }  # fmt: skip
        if layer in attention:
            shapes |= {
                f"self_attn.{part}_proj.weight": [64 if part in ("q", "out") else 32, 64] for part in ("q", "k", "v", "out")
            }
            shapes |= {f"self_attn.{part}_layernorm.weight": [16] for part in "qk"}
        else:
            shapes |= {"conv.conv.weight": [64, 1, changes["conv_L_cache"]]}
            shapes |= {"conv.in_proj.weight": [192, 64], "conv.out_proj.weight": [64, 64]}
        tensors |= {f"model.layers.{layer}.{name}": ["BF16", shape] for name, shape in shapes.items()}
    return case | {"tensors": dict(sorted(tensors.items()))}


def gpt_oss_case(directory: str, changes: Case, experts: int = 3) -> Case:
    """A GPT-OSS in 16 bits."""
    changes = {
        "num_local_experts": experts, "num_experts_per_tok": 2, "sliding_window": 128, "head_dim": 16,
        "attention_bias": True,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                         "original_max_position_embeddings": 4096}, **changes,
    }  # fmt: skip
    case = without(family("GptOssForCausalLM", "gpt_oss", directory, changes), *MLP)
    heads = case["config"]["num_attention_heads"]
    return with_layers(
        case,
        {
            "self_attn.sinks": [heads],
            "mlp.router.weight": [experts, 64],
            "mlp.router.bias": [experts],
            "mlp.experts.gate_up_proj": [experts, 64, 192],
            "mlp.experts.gate_up_proj_bias": [experts, 192],
            "mlp.experts.down_proj": [experts, 96, 64],
            "mlp.experts.down_proj_bias": [experts, 64],
        },
    )


MSCALE = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.707}
KINDS = ["conv", "full_attention"]

CASES: dict[str, Case] = {
    "deepseek": deepseek1_case("deepseek-moe-16b-chat", {}),
    "deepseek-biases": deepseek1_case(
        "deepseek", {"attention_bias": True, "num_hidden_layers": 4, "num_attention_heads": 8}, dense=2, experts=9, shared=1
    ),
    "deepseek-all-dense": deepseek1_case("deepseek", {"n_routed_experts": 64}, dense=2, experts=0),
    "deepseek2": deepseek2_case("DeepSeek-V2", {"rope_scaling": MSCALE, "routed_scaling_factor": 16.0}),
    "deepseek2-lite": deepseek2_case(
        "DeepSeek-V2-Lite", {"n_group": 1, "topk_group": 1, "scoring_func": "softmax", "num_attention_heads": 2,
                             "num_key_value_heads": 2}, queries=None,
    ),
    "deepseek2-square": deepseek2_case("square", {"qk_nope_head_dim": 10, "tie_word_embeddings": True}, dense=0, experts=4),
    "deepseek3": deepseek3_case("DeepSeek-V3", {"rope_scaling": {**MSCALE, "mscale_all_dim": 1.0}}),
    "deepseek3-sparse-config": deepseek3_case("DeepSeek-R1", {"rope_theta": None, "rms_norm_eps": None}),
    "llama4": llama4_case("Llama-4-Scout-17B-16E", {"rope_scaling": {**LLAMA3, "factor": 8.0}, "rope_theta": 500000.0}),
    "llama4-interleaved": llama4_case(
        "Llama-4-Maverick", {"num_hidden_layers": 4, "attention_bias": True, "tie_word_embeddings": True},
        every=2, experts=5,
    ),
    "llama4-full-attention": llama4_case("llama4", {"layer_types": ["full_attention"] * 2, "num_key_value_heads": 4}),
    "llama4-vision": llama4_vision_case("Llama-4-Scout", {}),
    "lfm2": lfm2_case("LFM2-1.2B", {"layer_types": [*KINDS, *KINDS], "num_hidden_layers": 4}, {1, 3}, inner=256),
    "lfm2-indices": lfm2_case(
        "LFM2-350M",
        {"full_attn_idxs": [2], "num_hidden_layers": 3, "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.3,
         "block_ff_dim": 200, "conv_L_cache": 4}, {2}, inner=192,
    ),
    "lfm2-plain": lfm2_case(
        "LFM2-plain", {"block_auto_adjust_ff_dim": False, "layer_types": [*KINDS], "norm_eps": None}, {1}, inner=96
    ),
    "gpt-oss": gpt_oss_case("gpt-oss-20b-BF16", {"rope_theta": 150000}),
    "gpt-oss-tied": gpt_oss_case(
        "gpt-oss", {"tie_word_embeddings": True, "sliding_window": 64, "num_attention_heads": 8, "head_dim": 24}, experts=5
    ),
}  # fmt: skip
