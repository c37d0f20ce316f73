"""Cases of mixtures of experts since 2025: MiniMax M2, Mellum 2, Ling, K-EXAONE, Hunyuan A13B; and Granite with windows."""

from __future__ import annotations

from architecture_cases_llama_shaped import MULTIPLIERS
from architecture_cases_mixture_of_experts import (
    MIXTRAL,
    PROJECTIONS,
    deepseek_case,
    mlps,
    qwen3moe_case,
    with_experts,
)
from architecture_cases_related import AHEAD
from architecture_shapes import ATTENTION, LLAMA3, Case, family, joined, merged, renamed, with_layers

LING = {
    "model.embed_tokens": "model.word_embeddings", "self_attn.query_key_value": "attention.query_key_value",
    "self_attn.o_proj": "attention.dense", "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm", "e_score_correction_bias": "expert_bias",
}  # fmt: skip


def minimax_case(directory: str, changes: Case, experts: int = 5) -> Case:
    """A MiniMax M2: norms of whole projections, and experts as in Mixtral with a correction."""
    changes = {
        "num_local_experts": experts, "num_experts_per_tok": 2, "head_dim": 32, "rotary_dim": 16, "scoring_func": "sigmoid",
        "use_qk_norm": True, **changes,
    }  # fmt: skip
    case = with_experts(family("MiniMaxM2ForCausalLM", "minimax_m2", directory, changes), "block_sparse_moe", MIXTRAL,
                        experts, inner=96)  # fmt: skip
    norms = {"self_attn.q_norm.weight": [128], "self_attn.k_norm.weight": [64]}
    return with_layers(case, {**norms, "block_sparse_moe.e_score_correction_bias": [experts]})


def ling_case(directory: str, changes: Case, version: int = 2, ahead: int = 1) -> Case:
    """A Ling 1 or 2: fused projections, fine-grained and shared experts, in Ling 2 also norms of heads and a correction."""
    changes = {
        "num_experts": 6, "num_experts_per_tok": 2, "num_shared_experts": 1, "moe_intermediate_size": 24,
        "norm_topk_prob": True, "first_k_dense_replace": 1 if version == 2 else 0, "num_hidden_layers": 3, **changes,
    }  # fmt: skip
    name = "BailingMoeV2ForCausalLM" if version == 2 else "BailingMoeForCausalLM"
    case = family(name, "bailing_moe", directory, changes)
    if version == 2:
        case = with_layers(case, {f"self_attn.{part}_norm.weight": [16] for part in "qk"})
    case = deepseek_case(case, changes["first_k_dense_replace"], 6, changes["num_shared_experts"])
    if version == 2:
        bias = {f"model.layers.{layer}.mlp.gate.e_score_correction_bias": ["F32", [6]] for layer in (1, 2)}
        case = merged(case, bias)
        if ahead:
            names = {f"model.layers.2.{name}": kind for name, kind in AHEAD.items() if not name.startswith("shared_head")}
            case = merged(case, {**names, "model.layers.2.final_layernorm.weight": ["BF16", [64]]})
            case["config"] |= {"num_hidden_layers": 2, "num_nextn_predict_layers": ahead}
    return renamed(joined(case, ATTENTION, "self_attn.query_key_value"), LING)


def exaone_moe_case(directory: str, changes: Case, ahead: int = 1) -> Case:
    """A K-EXAONE: norms of heads, a correction beside the router, and a dense layer ahead that is counted by itself."""
    changes = {
        "num_experts": 6, "num_experts_per_tok": 2, "num_shared_experts": 1, "moe_intermediate_size": 24, "n_group": 1,
        "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
        "scoring_func": "sigmoid", "sliding_window": 128, "num_hidden_layers": 4, "head_dim": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "num_nextn_predict_layers": ahead, **changes,
    }  # fmt: skip
    case = family("ExaoneMoEForCausalLM", "exaone_moe", directory, changes)
    dense = with_layers(case, {f"self_attn.{part}_norm.weight": [16] for part in "qk"})
    sparse = deepseek_case(dense, 1, 6, 1)
    bias = {f"model.layers.{layer}.mlp.e_score_correction_bias": ["F32", [6]] for layer in (1, 2, 3)}
    layer = {name.replace("model.layers.3.", "mtp.layers.0."): kind for name, kind in dense["tensors"].items()
             if ".layers.3." in name}  # fmt: skip
    norms = {f"mtp.{name}.weight": ["BF16", [64]] for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    more = {**layer, **norms, "mtp.fc.weight": ["BF16", [64, 128]]} if ahead else {}
    return merged(sparse, {**bias, **more})


def hunyuan_moe_case(directory: str, changes: Case, experts: int = 5) -> Case:
    """A Hunyuan A13B: norms of heads, a shared MLP beside the experts, sizes for each layer."""
    changes = {
        "num_experts": experts, "moe_topk": [2, 2], "num_shared_expert": [1, 1], "moe_intermediate_size": [96, 96],
        "head_dim": 16, **changes,
    }  # fmt: skip
    case = family("HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe", directory, changes)
    case = with_experts(case, "mlp", PROJECTIONS, experts, 96)
    case = with_layers(case, {f"self_attn.{name}_layernorm.weight": [16] for name in ("query", "key")})
    case = with_layers(case, mlps(dict.fromkeys(PROJECTIONS, 96), "mlp.shared_mlp"))
    return renamed(case, {"mlp.gate.weight": "mlp.gate.wg.weight"})


def granite_swa_case(directory: str, changes: Case) -> Case:
    """A Granite with windows: attention sinks in every layer."""
    changes = {"num_hidden_layers": 4, "sliding_window": 128, **MULTIPLIERS, **changes}
    return with_layers(family("GraniteSWAForCausalLM", "granite_swa", directory, changes), {"self_attn.sinks": [4]})


def granite_moe_swa_case(directory: str, changes: Case, experts: int = 4, shared: int = 0) -> Case:
    """The same with experts, gate and up fused, and perhaps a shared one."""
    changes = {
        "architectures": ["GraniteMoeSWAForCausalLM"], "model_type": "granitemoe_swa", "num_local_experts": experts,
        "num_experts_per_tok": 2, "shared_intermediate_size": shared, **changes,
    }  # fmt: skip
    case = granite_swa_case(directory, changes)
    moe = {
        "router.weight": [experts, 64], "experts.gate_up_proj": [experts, 192, 64], "experts.down_proj": [experts, 64, 96],
    }  # fmt: skip
    mlp = {"input_linear.weight": [2 * shared, 64], "output_linear.weight": [64, shared]} if shared else {}
    shapes = {f"block_sparse_moe.{name}": shape for name, shape in moe.items()}
    shapes |= {f"shared_mlp.{name}": shape for name, shape in mlp.items()}
    tensors = {name: kind for name, kind in case["tensors"].items() if ".mlp." not in name}
    return with_layers(case | {"tensors": tensors}, shapes)


def hyv3_case(directory: str, changes: Case) -> Case:
    """A Hunyuan 3: the first layer dense, a router with a bias, and one layer ahead with a norm after it."""
    changes = {
        "num_experts": 6, "num_experts_per_tok": 2, "num_shared_experts": 1, "moe_intermediate_size": 24, "head_dim": 16,
        "router_scaling_factor": 2.5, "mlp_layer_types": ["dense", "sparse", "sparse"], "num_hidden_layers": 3, **changes,
    }  # fmt: skip
    case = with_layers(family("HYV3ForCausalLM", "hy_v3", directory, changes),
                       {f"self_attn.{part}_norm.weight": [16] for part in "qk"})  # fmt: skip
    case = deepseek_case(case, 1, 6, 1)
    bias = {f"model.layers.{layer}.mlp.expert_bias": ["F32", [6]] for layer in (1, 2)}
    ahead = {f"model.layers.2.{name}": kind for name, kind in AHEAD.items() if name.startswith("e")}
    norms = {f"model.layers.2.{name}.weight": ["BF16", [64]] for name in ("final_layernorm", "hnorm")}
    case["config"] |= {"num_hidden_layers": 2, "num_nextn_predict_layers": 1, "mlp_layer_types": ["dense", "sparse"]}
    names = {"mlp.gate.weight": "mlp.router.gate.weight", "mlp.shared_experts": "mlp.shared_mlp"}
    return renamed(merged(case, {**bias, **ahead, **norms}), names)


def cohere_moe_case(directory: str, changes: Case, shared: int = 1) -> Case:
    """A Cohere 2 with experts: the first layer dense, tied embeddings, one norm for both halves of a layer."""
    changes = {
        "num_experts": 6, "num_experts_per_tok": 2, "num_shared_experts": shared, "intermediate_size": 24,
        "prefix_dense_intermediate_size": 96, "head_dim": 16, "layer_norm_eps": 1e-5, "rms_norm_eps": None,
        "logit_scale": 0.25, "sliding_window": 128, "num_hidden_layers": 4, "tie_word_embeddings": True,
        "expert_selection_fn": "sigmoid", "norm_topk_prob": True, "mlp_layer_types": ["dense"] + ["sparse"] * 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"], **changes,
    }  # fmt: skip
    case = family("Cohere2MoeForCausalLM", "cohere2_moe", directory, changes, shaped={"intermediate_size": 96})
    case = deepseek_case(case, 1, 6, shared)
    return case | {"tensors": {name: kind for name, kind in case["tensors"].items() if "post_attention" not in name}}


MELLUM_ROPE = {
    "full_attention": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 16},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
}  # fmt: skip

CASES: dict[str, Case] = {
    "minimax-m2": minimax_case("MiniMax-M2", {}),
    "mellum": qwen3moe_case(
        "Mellum2-12B", {"architectures": ["MellumForCausalLM"], "model_type": "mellum", "sliding_window": 128,
                        "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": MELLUM_ROPE,
                        "rope_theta": None},
    ),
    "mellum-no-window": qwen3moe_case(
        "Mellum2", {"architectures": ["MellumForCausalLM"], "model_type": "mellum", "use_sliding_window": False},
    ),
    "bailingmoe": ling_case("Ling-lite", {}, version=1),
    "bailingmoe-head-dim": ling_case("Ling-lite-1.5", {"head_dim": 32, "num_shared_experts": 2}, version=1),
    "bailingmoe2": ling_case(
        "Ling-mini-2.0", {"score_function": "sigmoid", "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5,
                          "partial_rotary_factor": 0.5, "head_dim": 16},
    ),
    "bailingmoe2-nothing-ahead": ling_case(
        "Ring-mini-2.0", {"score_function": "sigmoid", "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 0,
                          "moe_shared_expert_intermediate_size": 24}, ahead=0,
    ),
    "exaone-moe": exaone_moe_case("K-EXAONE-236B-A23B", {}),
    "exaone-moe-nothing-ahead": exaone_moe_case(
        "K-EXAONE", {"architectures": ["ExaoneMoeForCausalLM"], "rope_scaling": LLAMA3}, ahead=0
    ),
    "hunyuan-moe": hunyuan_moe_case("Hunyuan-A13B-Instruct", {}),
    "hy-v3": hyv3_case("Hy3", {}),
    "cohere2moe": cohere_moe_case("North-Mini-Code-1.0", {}),
    "cohere2moe-nothing-shared": cohere_moe_case("North-Mini", {"norm_topk_prob": False}, shared=0),
    "cohere2moe-rms": cohere_moe_case("North-RMS", {"layer_norm_eps": None, "rms_norm_eps": 1e-5, "model_type": "mine"}),
    "granite-moe-swa": granite_moe_swa_case("granite-moe-swa", {}),
    "granite-moe-swa-shared": granite_moe_swa_case("granite-moe-swa", {}, shared=40),
    "granite-swa": granite_swa_case("granite-swa-3b", {}),
    "granite-swa-mixed": granite_swa_case(
        "granite-swa", {"layer_types": ["full_attention", "sliding_attention"] * 2, "no_rope_layers": [0, 1, 0, 1]}
    ),
}  # fmt: skip
