"""Cases of models whose forward pass is that of another family: GLM 4.7 Flash, GLM V, Youtu, EXAONE 4.5, Bamba ..."""

from __future__ import annotations

from architecture_cases_enclosed import SECTIONS, beside, enclosed
from architecture_cases_hybrid import granite4_case
from architecture_cases_latent_attention import deepseek2_case
from architecture_cases_mixture_of_experts import glm4moe_case
from architecture_cases_normalization import exaone4_case
from architecture_cases_renamed import glm_case
from architecture_shapes import LLAMA3, YARN, Case, llama_case, merged, renamed, without

EYE = beside("model.visual.blocks.0.attn.proj", "model.visual.patch_embed.proj")

AHEAD: Case = {
    **{f"{name}.weight": ["BF16", [64]] for name in ("enorm", "hnorm", "shared_head.norm")},
    **{f"{name}.weight": ["BF16", [512, 64]] for name in ("embed_tokens", "shared_head.head")},
    "eh_proj.weight": ["BF16", [64, 128]],
}


def looking_ahead(case: Case, layers: int = 2) -> Case:
    """The case with its last layer as one for multi-token prediction."""
    config = {**case["config"], "num_hidden_layers": layers, "num_nextn_predict_layers": 1}
    ahead = {f"model.layers.{layers}.{name}": kind for name, kind in AHEAD.items()}
    return merged(case | {"config": config}, ahead)


def flash_case(directory: str, changes: Case, ahead: bool = True) -> Case:
    """A GLM 4.7 Flash: a DeepSeek V3 with experts chosen with a correction."""
    changes = {
        "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "topk_method": "noaux_tc", "n_group": 1,
        "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.8, "num_hidden_layers": 3, **changes,
    }  # fmt: skip
    case = deepseek2_case(directory, changes, version=3, shared=1)
    bias = {f"model.layers.{layer}.mlp.gate.e_score_correction_bias": ["F32", [6]] for layer in (1, 2)}
    case = merged(case, bias)
    return looking_ahead(case) if ahead else case


def youtu_case(directory: str, changes: Case) -> Case:
    """A Youtu: latent attention without experts."""
    case = deepseek2_case(directory, {"architectures": ["YoutuForCausalLM"], "model_type": "youtu", **changes}, dense=2)
    sparse = (
        "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace",
        "moe_layer_freq",
    )  # fmt: skip
    return case | {"config": {key: value for key, value in case["config"].items() if key not in sparse}}


def mistral4_case(directory: str, changes: Case, experts: int = 6) -> Case:
    """A Mistral Small 4: the experts of a layer in two tensors."""
    changes = {"model_type": "mistral4", "rope_parameters": {**YARN, "rope_type": "yarn", "rope_theta": 1e4}, **changes}
    case = deepseek2_case(directory, {**changes, "rope_theta": None}, version=3, shared=1, dense=0, experts=experts)
    tensors = {name: kind for name, kind in case["tensors"].items() if ".experts." not in name}
    for layer in range(2):
        tensors[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = ["BF16", [experts, 48, 64]]
        tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = ["BF16", [experts, 64, 24]]
    return case | {"tensors": dict(sorted(tensors.items()))}


def glmv_case(directory: str, changes: Case, layers: int = 2) -> Case:
    """A GLM 4 with M-RoPE, whose pairs are neighbours."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    changes = {"rope_parameters": rope, "rope_theta": None, "head_dim": None, "num_hidden_layers": layers, **changes}
    return glm_case(directory, changes, version="4")


def exaone4_5_case(directory: str, changes: Case, ahead: int = 1) -> Case:
    """An EXAONE 4.5 inside its wrapper, with layers for multi-token prediction that are counted by themselves."""
    case = exaone4_case(directory, {"num_hidden_layers": 3, "head_dim": 16, "num_nextn_predict_layers": ahead, **changes})
    layer = {name.removeprefix("model.layers.2."): kind for name, kind in case["tensors"].items() if ".layers.2." in name}
    tensors = {name: kind for name, kind in case["tensors"].items() if ".layers.2." not in name}
    tensors = {name.replace("model.", "model.language_model.", 1): kind for name, kind in tensors.items()}
    for number in range(1 if changes.get("mtp_share_layers") else ahead):
        tensors |= {f"mtp.layers.{number}.{name}": kind for name, kind in layer.items()}
    if ahead:
        norms = {f"mtp.{name}.weight": ["BF16", [64]] for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
        tensors |= norms | {"mtp.fc.weight": ["BF16", [64, 128]]}
    inner = {**case["config"], "num_hidden_layers": 2}
    config = {"architectures": ["Exaone4_5_ForConditionalGeneration"], "model_type": "exaone4_5", "text_config": inner}
    return case | {"config": config, "tensors": dict(sorted({**tensors, **EYE}.items()))}


def bamba_case(directory: str, changes: Case) -> Case:
    """A Bamba: a Granite 4 H with other names."""
    case = without(granite4_case(directory, {}, experts=0, shared=96), "input_linear.weight", "output_linear.weight")
    names = {"post_attention_layernorm": "pre_ff_layernorm", "model.norm.": "model.final_layernorm."}
    mlp: Case = {}
    for layer in range(3):
        mlp |= {f"model.layers.{layer}.feed_forward.{name}_proj.weight": ["BF16", [96, 64]] for name in ("gate", "up")}
        mlp[f"model.layers.{layer}.feed_forward.down_proj.weight"] = ["BF16", [64, 96]]
    kept = {key: value for key, value in case["config"].items() if key.startswith("mamba") or key in (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size", "rms_norm_eps",
        "max_position_embeddings", "rope_theta", "tie_word_embeddings", "intermediate_size")}  # fmt: skip
    config = {"architectures": ["BambaForCausalLM"], "model_type": "bamba", **kept, "attn_layer_indices": [1], **changes}
    return merged(renamed(case, names) | {"config": config}, mlp)


CASES: dict[str, Case] = {
    "glm4-flash": flash_case("GLM-4.7-Flash", {}),
    "glm4-flash-nothing-ahead": flash_case("GLM-4.7-Flash", {"num_nextn_predict_layers": 0}, ahead=False),
    "youtu": youtu_case("Youtu-LLM-2B", {}),
    "youtu-vl": enclosed(
        youtu_case("Youtu-VL-4B", {"tie_word_embeddings": True}), "YoutuVLForConditionalGeneration youtu_vl", "text_config",
        "model.", beside("siglip2.vision_model.encoder.layers.0.mlp.fc1", "merger.mlp.0"), named=True,
    ),
    "mistral4": enclosed(
        mistral4_case("Mistral-Small-4", {}), "Mistral3ForConditionalGeneration mistral3", "text_config",
        "language_model.model.", beside("vision_tower.ln_pre", "multi_modal_projector.norm"),
    ),
    "glm4v": enclosed(
        glmv_case("GLM-4.1V-9B", {"model_type": "glm4v_text", "attention_bias": True}),
        "Glm4vForConditionalGeneration glm4v", "text_config", "model.language_model.", EYE,
    ),
    "glm-ocr": enclosed(
        looking_ahead(glmv_case("GLM-OCR", {"model_type": "glm_ocr_text", "head_dim": 32}, layers=3)),
        "GlmOcrForConditionalGeneration glm_ocr", "text_config", "model.language_model.", EYE,
    ),
    "glm4v-moe": enclosed(
        glm4moe_case("GLM-4.5V", {"model_type": "glm4v_moe_text", "num_nextn_predict_layers": None, "rope_parameters":
                     {**SECTIONS, "partial_rotary_factor": 0.5}, "rope_theta": None}, ahead=0),
        "Glm4vMoeForConditionalGeneration glm4v_moe", "text_config", "model.language_model.", EYE,
    ),
    "solar-open": glm4moe_case(
        "Solar-Open-100B", {"architectures": ["SolarOpenForCausalLM"], "model_type": "solar_open", "use_qk_norm": False,
                            "attention_bias": False, "num_nextn_predict_layers": None, "partial_rotary_factor": 1.0},
        ahead=0,
    ),
    "exaone4_5": exaone4_5_case("EXAONE-4.5-33B", {"rope_scaling": LLAMA3}),
    "exaone4_5-shared": exaone4_5_case("EXAONE-4.5", {"mtp_share_layers": True}, ahead=2),
    "exaone4_5-nothing-ahead": exaone4_5_case("EXAONE-4.5", {}, ahead=0),
    "internlm3": llama_case(
        "internlm3-8b-instruct", {"architectures": ["InternLM3ForCausalLM"], "model_type": "internlm3", "head_dim": 32,
                                  "rope_scaling": {"rope_type": "dynamic", "factor": 6.0}},
    ),
    "bamba": bamba_case("Bamba-9B-v2", {"attn_rotary_emb": 8}),
}  # fmt: skip
