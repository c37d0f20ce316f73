"""Cases of decoders some of whose layers have a short convolution or Mamba 2 in place of attention: LFM 2, Granite 4."""

from __future__ import annotations

from architecture_cases_mixture_of_experts import granitemoe_case
from architecture_shapes import Case, family, merged


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


def lfm2moe_case(directory: str, changes: Case, dense: int = 1, experts: int = 3, bias: bool = True) -> Case:
    """An LFM 2 MoE of four layers, the first `dense` of them without experts."""
    changes = {
        "layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_hidden_layers": 4,
        "num_dense_layers": dense, "num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "use_expert_bias": bias, **changes,
    }  # fmt: skip
    case = lfm2_case(directory, changes, {1, 3}, inner=96)
    config = {**case["config"], "architectures": ["Lfm2MoeForCausalLM"], "model_type": "lfm2_moe"}
    tensors = dict(case["tensors"])
    for layer in range(dense, 4):
        place = f"model.layers.{layer}.feed_forward."
        for name in ("w1", "w2", "w3"):
            del tensors[f"{place}{name}.weight"]
            shape = [64, 32] if name == "w2" else [32, 64]
            tensors |= {f"{place}experts.{expert}.{name}.weight": ["BF16", shape] for expert in range(experts)}
        tensors |= {f"{place}gate.weight": ["BF16", [experts, 64]]}
        tensors |= {f"{place}expert_bias": ["F32", [experts]]} if bias else {}
    return case | {"config": config, "tensors": dict(sorted(tensors.items()))}


def granite4_case(directory: str, changes: Case, kinds: str = "mam", experts: int = 3, shared: int = 48) -> Case:
    """A Granite 4, whose layers have a Mamba 2 (m) or attention (a)."""
    layers = [{"m": "mamba", "a": "attention"}[kind] for kind in kinds]
    changes = {
        "num_hidden_layers": len(layers), "layer_types": layers, "shared_intermediate_size": shared, "mamba_d_conv": 4,
        "mamba_d_state": 16, "mamba_n_groups": 2, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_expand": 2,
        "mamba_conv_bias": True, "mamba_proj_bias": False, "position_embedding_type": "nope",
        "num_experts_per_tok": 2 if experts else 0, **changes,
    }  # fmt: skip
    case = granitemoe_case(directory, changes, experts, shared)
    width = 128 + 2 * 2 * 16
    mixer = {
        "in_proj.weight": [128 + width + 4, 64], "conv1d.weight": [width, 1, 4], "conv1d.bias": [width], "dt_bias": [4],
        "A_log": [4], "D": [4], "norm.weight": [128], "out_proj.weight": [64, 128],
    }  # fmt: skip
    tensors = {}
    for name, kind in case["tensors"].items():
        recurrent = name.startswith("model.layers.") and layers[int(name.split(".")[2])] == "mamba"
        if not (recurrent and "self_attn" in name) and (experts or "block_sparse_moe" not in name):
            tensors[name] = kind
    for layer in (number for number, kind in enumerate(layers) if kind == "mamba"):
        kinds_of = {name: "F32 logarithms" if name == "A_log" else "BF16" for name in mixer}
        tensors |= {f"model.layers.{layer}.mamba.{name}": [kinds_of[name], shape] for name, shape in mixer.items()}
    config = {**case["config"], "architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid"}
    return case | {"config": config, "tensors": dict(sorted(tensors.items()))}


LAYERS = ["conv", "full_attention"]

CASES: dict[str, Case] = {
    "lfm2": lfm2_case("LFM2-1.2B", {"layer_types": [*LAYERS, *LAYERS], "num_hidden_layers": 4}, {1, 3}, inner=256),
    "lfm2-untied": merged(
        lfm2_case("LFM2-untied", {"layer_types": ["conv", "full_attention"], "tie_word_embeddings": False}, {1}, inner=256),
        {"lm_head.weight": ["BF16", [512, 64]]},
    ),
    "lfm2-indices": lfm2_case(
        "LFM2-350M",
        {"full_attn_idxs": [2], "num_hidden_layers": 3, "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.3,
         "block_ff_dim": 200, "conv_L_cache": 4}, {2}, inner=192,
    ),
    "lfm2-plain": lfm2_case(
        "LFM2-plain", {"block_auto_adjust_ff_dim": False, "layer_types": [*LAYERS], "norm_eps": None}, {1}, inner=96
    ),
    "lfm2moe": lfm2moe_case("LFM2-8B-A1B", {}),
    "lfm2moe-sparse-config": lfm2moe_case(
        "lfm2moe", {"norm_eps": None, "rope_theta": None, "conv_L_cache": 3, "max_position_embeddings": None}, dense=2,
        experts=5, bias=False,
    ),
    "granitehybrid": granite4_case("granite-4.0-h-tiny", {"tie_word_embeddings": True}),
    "granitehybrid-dense": granite4_case("granite-4.0-h-350m", {"num_key_value_heads": 4}, kinds="mma", experts=0),
    "granite4": granite4_case(
        "granite-4.0-micro", {"position_embedding_type": "rope", "tie_word_embeddings": True, "rope_theta": 1e7},
        kinds="aa", experts=0, shared=96,
    ),
    "granite4moe": granite4_case(
        "granite-4.0-moe", {"position_embedding_type": "rope"}, kinds="aa", shared=40
    ),
}  # fmt: skip
