"""Cases of later families, and of the language models of ones that see: Qwen VL, Mistral Small 3.1, ERNIE 4.5 MoE ..."""

from __future__ import annotations

from typing import Any

from architecture_cases import LLAMA3, Case, qwen_case
from architecture_cases_encoders import LAST, MEAN
from architecture_cases_llama_like import PROJECTIONS, gemma3_case, qwen3moe_case, with_experts
from architecture_cases_open import family, granitemoe_case, olmo2_case, with_layers, without
from architecture_cases_sparse import lfm2_case

EYE: Case = {
    "model.visual.blocks.0.attn.proj.weight": ["BF16", [32, 32]], "visual.patch_embed.proj.weight": ["BF16", [32, 3]],
}  # fmt: skip
SECTIONS = {"type": "mrope", "mrope_section": [2, 3, 3]}


def seeing(case: Case, kind: str, eye: Case, vision: Case | None = None, prefix: str = "model.language_model.") -> Case:
    """The case as the language model of a model of class and type `kind` that sees, as transformers 5 stores it."""
    name, model_type = kind.split()
    inner = {key: value for key, value in case["config"].items() if key != "architectures"}
    config = {
        "architectures": [name], "model_type": model_type, "text_config": inner, "vision_config": vision or {"depth": 1},
    }  # fmt: skip
    tensors = {old.replace("model.", prefix, 1): kind for old, kind in case["tensors"].items()}
    return case | {"config": config, "tensors": dict(sorted({**tensors, **eye}.items()))}


def packed_input_first(case: Case) -> Case:
    """The case with the experts of a layer in two tensors, input first."""
    tensors = {name: kind for name, kind in case["tensors"].items() if ".experts." not in name}
    experts, inner = case["config"]["num_experts"], case["config"]["moe_intermediate_size"]
    for layer in range(2):
        place = f"model.layers.{layer}.mlp.experts."
        tensors[f"{place}gate_up_proj"] = ["BF16", [experts, 64, 2 * inner]]
        tensors[f"{place}down_proj"] = ["BF16", [experts, inner, 64]]
    return case | {"tensors": dict(sorted(tensors.items()))}


def qwen2vl_case(directory: str, changes: Case, **more: Any) -> Case:
    """A Qwen 2 VL as before transformers 5: everything on the top level."""
    changes = {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "rope_scaling": SECTIONS,
        "vision_config": {"depth": 1, "embed_dim": 32}, **changes,
    }  # fmt: skip
    return qwen_case(directory, 2, changes, **more)


def ernie_moe_case(
    directory: str, changes: Case, experts: int = 3, shared: int = 2, sparse: tuple[int, ...] = (1, 2)
) -> Case:
    """An ERNIE 4.5 MoE of three layers, those of `sparse` with experts."""
    changes = {
        "num_hidden_layers": 3, "head_dim": 16, "moe_num_experts": experts, "moe_k": 2, "moe_intermediate_size": 32,
        "moe_num_shared_experts": shared, "moe_layer_start_index": 1, "moe_layer_interval": 1, "tie_word_embeddings": True,
        **changes,
    }  # fmt: skip
    dense = family("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", directory, changes)
    case = with_layers(
        with_experts(dense, "mlp", PROJECTIONS, experts, 32),
        {
            "mlp.moe_statics.e_score_correction_bias": [1, experts],
            **{f"mlp.shared_experts.{name}_proj.weight": [32 * shared, 64] for name in ("gate", "up") if shared},
            **({"mlp.shared_experts.down_proj.weight": [64, 32 * shared]} if shared else {}),
        },
    )
    tensors = {}
    for layer in range(3):
        source = case if layer in sparse else dense
        tensors |= {name: kind for name, kind in source["tensors"].items() if f".layers.{layer}." in name}
    tensors |= {name: kind for name, kind in dense["tensors"].items() if ".layers." not in name}
    ahead = {f"model.{name}.0.weight": ["BF16", [64]] for name in ("mtp_emb_norm", "mtp_hidden_norm")}
    return case | {"tensors": dict(sorted({**tensors, **ahead}.items()))}


def exaone4_case(directory: str, changes: Case) -> Case:
    """An EXAONE 4: norms behind both halves of a layer, and of each head."""
    case = olmo2_case(directory, changes)
    head_dim = changes.get("head_dim", 16)
    config = {**case["config"], "architectures": ["Exaone4ForCausalLM"], "model_type": "exaone4"}
    heads = {name: ["BF16", [head_dim]] for name in case["tensors"] if name.endswith(("q_norm.weight", "k_norm.weight"))}
    return case | {"config": config, "tensors": {**case["tensors"], **heads}}


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


def glm4moe_case(directory: str, changes: Case, ahead: int = 1, experts: int = 3) -> Case:
    """A GLM 4.5 of three layers, the first without experts, and layers that predict further ahead."""
    changes = {
        "num_hidden_layers": 3, "n_routed_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 32, "attention_bias": True, "norm_topk_prob": True,
        "routed_scaling_factor": 2.5, "use_qk_norm": True, "num_nextn_predict_layers": ahead, **changes,
    }  # fmt: skip
    shape = {"num_hidden_layers": 3 + ahead, "attention_bias": changes["attention_bias"]}
    dense = family("Glm4MoeForCausalLM", "glm4_moe", directory, changes, shaped=shape)
    dense = without(dense, "o_proj.bias")
    tensors = {name: kind for name, kind in dense["tensors"].items() if ".mlp." not in name or ".layers.0." in name}
    for layer in range(3 + ahead):
        place = f"model.layers.{layer}."
        more: Case = {f"self_attn.{part}_norm.weight": [32] for part in "qk"} if changes["use_qk_norm"] else {}
        if layer:
            more |= {"mlp.gate.weight": [experts, 64], "mlp.gate.e_score_correction_bias": [experts]}
            for expert in [f"experts.{number}" for number in range(experts)] + ["shared_experts"]:
                more |= {f"mlp.{expert}.{name}_proj.weight": [32, 64] for name in ("gate", "up")}
                more[f"mlp.{expert}.down_proj.weight"] = [64, 32]
        if layer > 2:
            more |= {f"{name}.weight": [64] for name in ("enorm", "hnorm", "shared_head.norm")}
            more |= {f"{name}.weight": [512, 64] for name in ("embed_tokens", "shared_head.head")}
            more["eh_proj.weight"] = [64, 128]
        tensors |= {place + name: ["BF16", shape] for name, shape in more.items()}
    return dense | {"tensors": dict(sorted(tensors.items()))}


def dots1_case(directory: str, changes: Case, **more: Any) -> Case:
    """A dots.llm1: a GLM 4.5 with norms for heads and nothing ahead."""
    case = glm4moe_case(
        directory, {"use_qk_norm": True, "attention_bias": False, "num_key_value_heads": 4, **changes}, ahead=0, **more
    )
    config = {key: value for key, value in case["config"].items() if key not in ("use_qk_norm", "num_nextn_predict_layers")}
    return case | {"config": {**config, "architectures": ["Dots1ForCausalLM"], "model_type": "dots1"}}


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


YARN_AND_MORE = {
    "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 8.0, "original_max_position_embeddings": 256, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.2,
}  # fmt: skip
PIXTRAL: Case = {
    "vision_tower.ln_pre.weight": ["BF16", [32]], "multi_modal_projector.norm.weight": ["BF16", [32]],
}  # fmt: skip
SEES: Case = {"model_type": "pixtral", "hidden_size": 32, "num_hidden_layers": 1}

CASES: dict[str, Case] = {
    "qwen2vl": qwen2vl_case(
        "Qwen2-VL-2B-Instruct", {"rope_theta": 1000000.0}, extra={"visual.patch_embed.proj.weight": ["BF16", [32, 3]]}
    ),
    "qwen2_5vl": seeing(
        qwen_case("Qwen2.5-VL-3B-Instruct", 2, {"model_type": "qwen2_5_vl_text", "rope_parameters":
                  {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [4, 2, 2]}, "rope_theta": None}),
        "Qwen2_5_VLForConditionalGeneration qwen2_5_vl", EYE,
    ),
    "qwen2vl-sparse-config": qwen2vl_case(
        "qwen2vl", {"rope_theta": None, "max_position_embeddings": None, "rms_norm_eps": None, "rope_scaling": None}
    ),
    "qwen3vl": seeing(
        qwen_case("Qwen3-VL-2B-Instruct", 3, {"model_type": "qwen3_vl_text", "head_dim": 32, "tie_word_embeddings": True,
                  "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]}}),
        "Qwen3VLForConditionalGeneration qwen3_vl", EYE, {"depth": 4, "deepstack_visual_indexes": [1, 2]},
    ),
    "qwen3vl-embedding": seeing(
        qwen_case("Qwen3-VL-Embedding", 3, {"model_type": "qwen3_vl_text", "rope_theta": None}, files=LAST),
        "Qwen3VLForConditionalGeneration qwen3_vl", {},
    ),
    "qwen3vlmoe": seeing(
        packed_input_first(qwen3moe_case("Qwen3-VL-30B-A3B-Instruct", {"model_type": "qwen3_vl_moe_text",
                           "rope_scaling": {"mrope_section": [6, 5, 5]}})),
        "Qwen3VLMoeForConditionalGeneration qwen3_vl_moe", EYE, {"depth": 4, "deepstack_visual_indexes": [1]},
    ),
    "gemma-embedding": gemma3_case(
        "embeddinggemma-300m", {"architectures": ["Gemma3TextModel"], "rope_theta": 1000000.0,
                                "use_bidirectional_attention": True}, files=MEAN,
    ),
    "mistral3": seeing(
        family("X", "mistral", "Mistral-Small-3.1-24B", {"head_dim": 32, "rope_theta": 1e9}),
        "Mistral3ForConditionalGeneration mistral3", PIXTRAL, SEES, prefix="language_model.model.",
    ),
    "ministral3": seeing(
        family("X", "ministral3", "Ministral-3-3B", {"head_dim": 16, "rope_parameters": YARN_AND_MORE, "rope_theta": None,
               "tie_word_embeddings": True}),
        "Mistral3ForConditionalGeneration mistral3", PIXTRAL, SEES, prefix="language_model.model.",
    ),
    "ministral3-sparse-config": family(
        "Ministral3ForCausalLM", "ministral3", "ministral",
        {"head_dim": 32, "rope_theta": None, "max_position_embeddings": None},
    ),
    "arcee": without(
        family("ArceeForCausalLM", "arcee", "AFM-4.5B", {"rope_theta": 10000.0, "attention_bias": True, "mlp_bias": True}),
        "gate_proj.weight", "gate_proj.bias",
    ),
    "arcee-embedding": without(
        family("ArceeForCausalLM", "arcee", "arcee", {"num_key_value_heads": None, "tie_word_embeddings": True,
               "rms_norm_eps": None}, files=MEAN),
        "gate_proj.weight",
    ),
    "ernie4_5-moe": ernie_moe_case("ERNIE-4.5-21B-A3B-PT", {"rope_theta": 500000.0}),
    "ernie4_5-moe-interval": ernie_moe_case(
        "ernie-moe", {"moe_layer_interval": 2, "moe_layer_start_index": 0, "moe_num_shared_experts": 0, "use_bias": False,
                      "tie_word_embeddings": False}, experts=5, shared=0, sparse=(1,),
    ),
    "glm4moe": glm4moe_case("GLM-4.5-Air", {"rope_theta": 1000000, "partial_rotary_factor": 0.5}),
    "glm4moe-not-ahead": glm4moe_case("GLM-4.6", {"num_nextn_predict_layers": 1}, ahead=0),
    "glm4moe-sparse-config": glm4moe_case(
        "glm4moe",
        {"use_qk_norm": False, "attention_bias": False, "num_nextn_predict_layers": 0, "rope_theta": None,
         "routed_scaling_factor": None, "norm_topk_prob": None, "rms_norm_eps": None, "head_dim": 16,
         "tie_word_embeddings": True},
        ahead=0, experts=5,
    ),
    "dots1": dots1_case("dots.llm1.inst", {"scoring_func": "sigmoid", "rope_theta": 10000000, "sliding_window": None}),
    "dots1-sparse-config": dots1_case(
        "dots1", {"scoring_func": "sigmoid", "rms_norm_eps": None, "rope_theta": None, "norm_topk_prob": None,
                  "max_position_embeddings": None}, experts=5,
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
    "exaone4": exaone4_case(
        "EXAONE-4.0-32B", {"sliding_window": 64, "num_hidden_layers": 4, "rope_theta": 1000000.0, "rope_scaling": LLAMA3,
                           "layer_types": [*["sliding_attention"] * 3, "full_attention"]}
    ),
    "exaone4-sparse-config": exaone4_case("exaone4", {"num_hidden_layers": 5, "rms_norm_eps": None, "rope_theta": None}),
}  # fmt: skip
