"""Cases of families that vary the llama: mixtures of experts, fused projections, more norms."""

from __future__ import annotations

from typing import Any

from architecture_cases import YARN, Case, llama_case, qwen_case


def with_experts(case: Case, place: str, names: dict[str, str], experts: int, inner: int) -> Case:
    """A llama-shaped case with experts, at `place` in each layer, for its MLP; `names`: gate, up, down -> their names."""
    hidden = case["config"]["hidden_size"]
    tensors = {name: shape for name, shape in case["tensors"].items() if ".mlp." not in name}
    for layer in range(case["config"]["num_hidden_layers"]):
        moe = f"model.layers.{layer}.{place}."
        tensors[f"{moe}gate.weight"] = ["BF16", [experts, hidden]]
        for part, name in names.items():
            shape = [hidden, inner] if part == "down" else [inner, hidden]
            tensors |= {f"{moe}experts.{expert}.{name}.weight": ["BF16", shape] for expert in range(experts)}
    return case | {"tensors": dict(sorted(tensors.items()))}


PROJECTIONS = {part: f"{part}_proj" for part in ("gate", "up", "down")}
MIXTRAL = {"gate": "w1", "down": "w2", "up": "w3"}


def fused(case: Case) -> Case:
    """The same experts in two tensors per layer, as transformers has them in memory."""
    tensors = {name: shape for name, shape in case["tensors"].items() if ".experts." not in name}
    for name, (dtype, shape) in case["tensors"].items():
        if name.endswith(".experts.0.gate_proj.weight"):
            inner, hidden = shape
            experts = sum(other.startswith(name.split(".0.gate")[0]) for other in case["tensors"]) // 3
            place = name.removesuffix("0.gate_proj.weight")
            tensors[f"{place}gate_up_proj"] = [dtype, [experts, 2 * inner, hidden]]
            tensors[f"{place}down_proj"] = [dtype, [experts, hidden, inner]]
    return case | {"tensors": dict(sorted(tensors.items()))}


def qwen2moe_case(directory: str, changes: Case, experts: int = 4, inner: int = 32, shared: int = 64) -> Case:
    """A Qwen 1.5 MoE: experts, and one that all texts go through, behind a gate of its own."""
    changes = {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "num_experts": experts,
        "num_experts_per_tok": 2, "moe_intermediate_size": inner, "shared_expert_intermediate_size": shared, **changes,
    }  # fmt: skip
    case = with_experts(qwen_case(directory, 2, changes), "mlp", PROJECTIONS, experts, inner)
    for layer in range(case["config"]["num_hidden_layers"]):
        mlp = f"model.layers.{layer}.mlp."
        case["tensors"][f"{mlp}shared_expert_gate.weight"] = ["BF16", [1, 64]]
        for part in ("gate", "up", "down"):
            shape = [64, shared] if part == "down" else [shared, 64]
            case["tensors"][f"{mlp}shared_expert.{part}_proj.weight"] = ["BF16", shape]
    return case | {"tensors": dict(sorted(case["tensors"].items()))}


def qwen3moe_case(directory: str, changes: Case, experts: int = 5, inner: int = 32) -> Case:
    """A Qwen 3 MoE."""
    changes = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": experts, "head_dim": 32,
        "num_experts_per_tok": 2, "moe_intermediate_size": inner, **changes,
    }  # fmt: skip
    return with_experts(qwen_case(directory, 3, changes), "mlp", PROJECTIONS, experts, inner)


def gemma3_case(directory: str, changes: Case, prefix: str = "", **more: Any) -> Case:
    """A Gemma 3: a Gemma 2 whose queries and keys are normed."""
    config: Case = {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 32, "sliding_window": 512,
        "tie_word_embeddings": True, "rope_theta": None,
    }  # fmt: skip
    extra: Case = {}
    head_dim = changes.get("head_dim", 32)
    for layer in range(2):
        place = f"model.layers.{layer}."
        extra |= {f"{place}{name}_feedforward_layernorm.weight": ["BF16", [64]] for name in ("pre", "post")}
        extra |= {f"{place}self_attn.{name}_norm.weight": ["BF16", [head_dim]] for name in ("q", "k")}
    case = llama_case(directory, {**config, **changes}, extra=extra, **more)
    return case | {"tensors": {f"{prefix}{name}": shape for name, shape in case["tensors"].items()}}


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


def phi3_case(directory: str, changes: Case) -> Case:
    """A Phi 3: queries, keys and values in one projection, gate and up in another."""
    case = llama_case(directory, {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", **changes})
    tensors = case["tensors"]
    for layer in range(case["config"]["num_hidden_layers"]):
        place = f"model.layers.{layer}."
        rows = [tensors.pop(f"{place}self_attn.{part}_proj.weight")[1][0] for part in "qkv"]
        tensors[f"{place}self_attn.qkv_proj.weight"] = ["BF16", [sum(rows), 64]]
        rows = [tensors.pop(f"{place}mlp.{part}_proj.weight")[1][0] for part in ("gate", "up")]
        tensors[f"{place}mlp.gate_up_proj.weight"] = ["BF16", [sum(rows), 64]]
    return case | {"tensors": dict(sorted(tensors.items()))}


def phimoe_case(directory: str, changes: Case, experts: int = 4) -> Case:
    """A Phi 3.5 MoE: norms with biases, and where the configuration says so biases everywhere else."""
    changes = {
        "architectures": ["PhiMoEForCausalLM"], "model_type": "phimoe", "num_local_experts": experts,
        "num_experts_per_tok": 2, "original_max_position_embeddings": 512, **changes,
    }  # fmt: skip
    case = with_experts(llama_case(directory, changes), "block_sparse_moe", MIXTRAL, experts, 96)
    for name, (dtype, shape) in list(case["tensors"].items()):
        if name.endswith(("norm.weight",)):
            case["tensors"][name.replace("weight", "bias")] = [dtype, shape]
    if changes.get("lm_head_bias"):
        case["tensors"]["lm_head.bias"] = ["BF16", [512]]
    return case | {"tensors": dict(sorted(case["tensors"].items()))}


LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
            "long_factor": [1.0, 1.5, 2.25, 3.0, 5.5, 9.0, 17.0, 31.0]}  # fmt: skip

CASES: dict[str, Case] = {
    "qwen2moe": qwen2moe_case("Qwen1.5-MoE-A2.7B-Chat", {"rope_theta": 1000000.0}),
    "qwen2moe-tied": qwen2moe_case(
        "tiny-qwen2moe",
        {"tie_word_embeddings": True, "num_attention_heads": 8, "rope_scaling": YARN, "norm_topk_prob": True},
        experts=7, inner=48, shared=32,
    ),
    "qwen2moe-fused": fused(qwen2moe_case("fused", {"num_experts_per_tok": 3}, experts=3)),
    "qwen3moe": qwen3moe_case("Qwen3-30B-A3B", {"rope_theta": 1000000.0, "norm_topk_prob": True}),
    "qwen3moe-tied": qwen3moe_case(
        "Qwen3-biased", {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 16, "num_key_value_heads": 1},
        experts=12, inner=16,
    ),
    "qwen3moe-fused": fused(qwen3moe_case("Qwen3-fused", {"rope_scaling": YARN})),
    "gemma3": gemma3_case("gemma-3-1b-it", {"rope_theta": 1000000, "rope_local_base_freq": 10000}),
    "gemma3-sparse-config": gemma3_case(
        "gemma3",
        {"max_position_embeddings": None, "rms_norm_eps": None, "final_logit_softcapping": 30.0, "sliding_window": None},
    ),
    "gemma3-nested-rope": gemma3_case(
        "gemma3-nested",
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0}}},
    ),
    "gemma3-vision": gemma3_vision_case(
        "gemma-3-4b-it", {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "num_attention_heads": 8, "head_dim": 16}
    ),
    "phi3": phi3_case("Phi-3-mini-4k-instruct", {"sliding_window": 2047, "original_max_position_embeddings": 2048}),
    "phi3-long": phi3_case(
        "Phi-3-mini-128k-instruct",
        {"rope_scaling": LONGROPE, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
         "sliding_window": 262144, "num_key_value_heads": 4},
    ),
    "phi3-partial": phi3_case(
        "Phi-4-mini-instruct",
        {"rope_scaling": {**LONGROPE, "short_factor": [1.0] * 6, "long_factor": [1.0, 1.2, 1.4, 2.0, 3.0, 4.0]},
         "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "original_max_position_embeddings": 2048},
    ),
    "phi3-sparse-config": phi3_case("phi3", {"num_key_value_heads": None, "rope_theta": None, "rms_norm_eps": None}),
    "phi3-raw-config": phi3_case(
        "phi3-raw",
        {"model_type": "phi3_mine", "rope_scaling": {**LONGROPE, "type": "su"}, "original_max_position_embeddings": 1024},
    ),
    "phimoe": phimoe_case("Phi-3.5-MoE-instruct", {"attention_bias": True, "lm_head_bias": True}),
    "phimoe-long": phimoe_case(
        "phimoe-long",
        {"rope_scaling": {**LONGROPE, "short_mscale": 1.2, "long_mscale": 1.3}, "max_position_embeddings": 131072},
        experts=6,
    ),
    "phimoe-plain": phimoe_case(
        "phimoe-plain", {"tie_word_embeddings": True, "num_attention_heads": 8, "sliding_window": 99}
    ),
}  # fmt: skip
