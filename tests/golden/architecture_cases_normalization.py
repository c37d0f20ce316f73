"""Cases of decoders that vary the norms of a llama: more of them, fewer, with biases, of heads, of another kind."""

from __future__ import annotations

from typing import Any

from architecture_shapes import LINEAR, LLAMA3, YARN, Case, family, llama_case, merged, with_layers, without


def gemma2_case(directory: str, changes: Case) -> Case:
    """A Gemma 2: a llama with two more norms in each layer."""
    config = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 32, "tie_word_embeddings": True}
    between = {
        f"model.layers.{layer}.{name}_feedforward_layernorm.weight": ["BF16", [64]]
        for layer in range(2) for name in ("pre", "post")
    }  # fmt: skip
    return llama_case(directory, {**config, **changes}, extra=between)


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


def exaone4_case(directory: str, changes: Case) -> Case:
    """An EXAONE 4: norms behind both halves of a layer, and of each head."""
    case = olmo2_case(directory, changes)
    head_dim = changes.get("head_dim", 16)
    config = {**case["config"], "architectures": ["Exaone4ForCausalLM"], "model_type": "exaone4"}
    heads = {name: ["BF16", [head_dim]] for name in case["tensors"] if name.endswith(("q_norm.weight", "k_norm.weight"))}
    return case | {"config": config, "tensors": {**case["tensors"], **heads}}


def cohere_case(directory: str, changes: Case, version: str = "") -> Case:
    """A Command R: one norm per layer, embeddings that are also the output."""
    changes = {"rms_norm_eps": None, "layer_norm_eps": 1e-5, "tie_word_embeddings": True, **changes}
    case = family(f"Cohere{version}ForCausalLM", f"cohere{version}", directory, changes)
    case = without(case, "post_attention_layernorm.weight")
    norms = {"self_attn.q_norm.weight": [4, 16], "self_attn.k_norm.weight": [2, 16]}
    return with_layers(case, norms if changes.get("use_qk_norm") else {})


def nemotron_case(directory: str, changes: Case) -> Case:
    """A Nemotron: layer norms, no gate."""
    changes = {"rms_norm_eps": None, "norm_eps": 1e-5, **changes}
    case = without(family("NemotronForCausalLM", "nemotron", directory, changes), "gate_proj.weight", "gate_proj.bias")
    biases = {
        name.replace("weight", "bias"): kind for name, kind in case["tensors"].items() if name.endswith("norm.weight")
    }
    return case | {"tensors": dict(sorted({**case["tensors"], **biases}.items()))}


def orion_case(directory: str, changes: Case) -> Case:
    """An Orion: a llama whose norms have biases."""
    case = family("OrionForCausalLM", "orion", directory, changes)
    norms = {name.replace("weight", "bias"): kind for name, kind in case["tensors"].items() if name.endswith("norm.weight")}
    return merged(case, norms)


DYNAMIC = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0}


def hunyuan_case(directory: str, changes: Case, **more: Case) -> Case:
    """A Hunyuan without experts."""
    case = family("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", directory, {"head_dim": 32, **changes}, **more)
    head_dim = case["config"].get("head_dim", 16)
    return with_layers(case, {f"self_attn.{name}_layernorm.weight": [head_dim] for name in ("query", "key")})


CASES: dict[str, Case] = {
    "gemma": llama_case(
        "gemma-2b-it",
        {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "head_dim": 32, "tie_word_embeddings": None,
         "rms_norm_eps": None, "hidden_act": "gelu"},
        extra={"lm_head.weight": ["BF16", [512, 64]]},
    ),
    "gemma-f16": llama_case(
        "gemma-f16",
        {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "head_dim": 16, "tie_word_embeddings": True},
        "F16",
    ),
    "gemma2": gemma2_case("gemma-2-9b-it", {"attn_logit_softcapping": 40.0, "sliding_window": 1024}),
    "gemma2-sparse-config": gemma2_case("gemma2", {"rms_norm_eps": None, "max_position_embeddings": None}),
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
    "olmo": olmo_case("OLMo-1.7-7B-hf", {"clip_qkv": 8.0}),
    "olmo-tied": olmo_case("OLMo-1B-hf", {"tie_word_embeddings": True, "num_key_value_heads": None, "clip_qkv": None}),
    "olmo-biases": olmo_case("olmo-biased", {"attention_bias": True, "clip_qkv": None}),
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
    "exaone4": exaone4_case(
        "EXAONE-4.0-32B", {"sliding_window": 64, "num_hidden_layers": 4, "rope_theta": 1000000.0, "rope_scaling": LLAMA3,
                           "layer_types": [*["sliding_attention"] * 3, "full_attention"]}
    ),
    "exaone4-sparse-config": exaone4_case("exaone4", {"num_hidden_layers": 5, "rms_norm_eps": None, "rope_theta": None}),
    "command-r": cohere_case(
        "c4ai-command-r-v01", {"model_max_length": 131072, "rope_theta": 8000000.0, "attention_bias": True}
    ),
    "command-r-plus": cohere_case("c4ai-command-r-plus", {"use_qk_norm": True}),
    "command-r-sparse-config": cohere_case("aya-23-8B", {"layer_norm_eps": None, "logit_scale": 0.8, "rope_theta": None}),
    "command-r-linear": cohere_case("command-r-linear", {"rope_scaling": LINEAR}),
    "cohere2": cohere_case(
        "c4ai-command-r7b-12-2024",
        {"rotary_pct": 1.0, "sliding_window": 256, "logit_scale": 0.25, "rope_theta": 50000, "head_dim": 16}, version="2",
    ),
    "cohere2-partial": cohere_case("cohere2", {"rotary_pct": 0.5, "num_attention_heads": 8}, version="2"),
    "cohere2-yarn": cohere_case("cohere2-yarn", {"rope_scaling": YARN, "rotary_pct": 1.0}, version="2"),
    "nemotron": nemotron_case("Minitron-4B-Base", {"partial_rotary_factor": 0.5, "head_dim": 16}),
    "nemotron-tied": nemotron_case(
        "nemotron",
        {"tie_word_embeddings": True, "head_dim": 24, "attention_bias": True, "mlp_bias": True, "norm_eps": None},
    ),
    "nemotron-raw-config": nemotron_case(
        "nemotron-long", {"model_type": "nemotron_mine", "partial_rotary_factor": 0.25, "factor": 4.0, "head_dim": None}
    ),
    "nemotron-linear": nemotron_case("nemotron-linear", {"partial_rotary_factor": 0.5, "rope_scaling": LINEAR}),
    "nemotron-no-factor": nemotron_case(
        "nemotron-zero", {"model_type": "nemotron_mine", "partial_rotary_factor": 0.25, "factor": 0, "head_dim": None}
    ),
    "orion": orion_case("Orion-14B-Chat", {"max_sequence_length": 4096, "num_key_value_heads": 4}),
    "orion-sparse-config": orion_case("Orion-14B-Base", {"num_key_value_heads": None, "rope_theta": None}),
    "hunyuan-dense": hunyuan_case(
        "Hunyuan-4B-Instruct", {"rope_scaling": DYNAMIC, "max_position_embeddings": 32768, "tie_word_embeddings": True}
    ),
    "hunyuan-dense-tied-with-head": hunyuan_case(
        "hunyuan", {"tie_word_embeddings": True, "attention_bias": True}, extra={"lm_head.weight": ["BF16", [512, 64]]}
    ),
    "hunyuan-dense-plain": hunyuan_case("hunyuan-plain", {"head_dim": None, "num_experts": 1, "rms_norm_eps": None}),
    "hunyuan-dense-linear": hunyuan_case("hunyuan-linear", {"rope_scaling": LINEAR}),
    "hunyuan-dense-yarn": hunyuan_case("hunyuan-yarn", {"rope_scaling": YARN, "tie_word_embeddings": True}),
}  # fmt: skip
