"""Cases of language models inside models that see: Qwen VL, Mistral Small 3.1, Gemma 3, Llama 4."""

from __future__ import annotations

from typing import Any

from architecture_cases_encoders import LAST
from architecture_cases_llama_shaped import qwen_case
from architecture_cases_mixture_of_experts import llama4_case, qwen3moe_case
from architecture_cases_normalization import gemma3_case
from architecture_shapes import Case, family

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


def gemma3_vision_case(directory: str, changes: Case) -> Case:
    """A Gemma 3 that sees: the language model is inside, beside a vision tower that a text model leaves out."""
    case = gemma3_case(directory, changes, prefix="language_model.")
    inner = {key: value for key, value in case["config"].items() if key != "architectures"}
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": inner,
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32, "num_hidden_layers": 1},
    }  # fmt: skip
    vision = {
        "multi_modal_projector.mm_input_projection_weight": ["BF16", [32, 64]],
        "multi_modal_projector.mm_soft_emb_norm.weight": ["BF16", [32]],
        "vision_tower.vision_model.post_layernorm.weight": ["BF16", [32]],
    }
    return case | {"config": config, "tensors": dict(sorted({**case["tensors"], **vision}.items()))}


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
    "qwen2vl-sparse-config": qwen2vl_case(
        "qwen2vl", {"rope_theta": None, "max_position_embeddings": None, "rms_norm_eps": None, "rope_scaling": None}
    ),
    "qwen2_5vl": seeing(
        qwen_case("Qwen2.5-VL-3B-Instruct", 2, {"model_type": "qwen2_5_vl_text", "rope_parameters":
                  {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [4, 2, 2]}, "rope_theta": None}),
        "Qwen2_5_VLForConditionalGeneration qwen2_5_vl", EYE,
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
    "mistral3": seeing(
        family("X", "mistral", "Mistral-Small-3.1-24B", {"head_dim": 32, "rope_theta": 1e9}),
        "Mistral3ForConditionalGeneration mistral3", PIXTRAL, SEES, prefix="language_model.model.",
    ),
    "ministral3": seeing(
        family("X", "ministral3", "Ministral-3-3B", {"head_dim": 16, "rope_parameters": YARN_AND_MORE, "rope_theta": None,
               "tie_word_embeddings": True}),
        "Mistral3ForConditionalGeneration mistral3", PIXTRAL, SEES, prefix="language_model.model.",
    ),
    "gemma3-vision": gemma3_vision_case(
        "gemma-3-4b-it", {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "num_attention_heads": 8, "head_dim": 16}
    ),
    "llama4-vision": llama4_vision_case("Llama-4-Scout", {}),
}  # fmt: skip
