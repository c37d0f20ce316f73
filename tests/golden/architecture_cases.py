"""The checkpoints that architecture goldens are made of: small variations of every family."""

from __future__ import annotations

from typing import Any

Case = dict[str, Any]

CARD = """---
license: apache-2.0
language:
- en
- no
tags: [text-generation, tiny]
pipeline_tag: text-generation
base_model: mistralai/Mistral-7B-v0.1
datasets:
- HuggingFaceH4/ultrachat_200k
- https://huggingface.co/datasets/foo
- https://example.com/data
model_creator: Some One
version: v1.5
---
# A card
"""

GENERATION = '{"temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1, "do_sample": true}'


def llama_tensors(config: Case, dtype: str = "BF16", prefix: str = "model.", norms: str | None = None) -> Case:
    """Every weight of a llama-shaped model, biases as the configuration says."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    inner, vocab = config["intermediate_size"], config["vocab_size"]
    norms = norms or dtype
    found: Case = {
        f"{prefix}embed_tokens.weight": [dtype, [vocab, hidden]],
        f"{prefix}norm.weight": [norms, [hidden]],
    }
    if not config.get("tie_word_embeddings") and prefix:
        found["lm_head.weight"] = [dtype, [vocab, hidden]]
    for layer in range(config["num_hidden_layers"]):
        name = f"{prefix}layers.{layer}."
        shapes = {
            "self_attn.q_proj": [heads * head_dim, hidden],
            "self_attn.k_proj": [kv_heads * head_dim, hidden],
            "self_attn.v_proj": [kv_heads * head_dim, hidden],
            "self_attn.o_proj": [hidden, heads * head_dim],
            "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden],
            "mlp.down_proj": [hidden, inner],
        }
        for part, shape in shapes.items():
            found[f"{name}{part}.weight"] = [dtype, shape]
            if config.get("attention_bias" if part.startswith("self_attn") else "mlp_bias"):
                found[f"{name}{part}.bias"] = [dtype, shape[:1]]
        found[f"{name}input_layernorm.weight"] = [norms, [hidden]]
        found[f"{name}post_attention_layernorm.weight"] = [norms, [hidden]]
    return dict(sorted(found.items()))


def llama_case(directory: str, changes: Case, dtype: str = "BF16", **more: Any) -> Case:
    """A llama configuration with `changes`; a change to None takes a key away."""
    config: Case = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    }
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    shaped = {**config, **more.pop("shaped", {})}
    extra = more.pop("extra", {})
    options = {key: more.pop(key) for key in ("prefix", "norms") if key in more}
    shaped = {key: value for key, value in shaped.items() if value is not None}
    tensors = dict(sorted({**llama_tensors(shaped, dtype, **options), **extra}.items()))
    return {"directory": directory, "config": config, "tensors": tensors, **more}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 32,
    "beta_slow": 1.0,
    "attention_factor": 1.1,
}


def mixtral_case(directory: str, changes: Case, experts: int = 3) -> Case:
    """A Mixtral: the MLP of a llama, once for each expert, and a router."""
    case = llama_case(
        directory,
        {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": experts, **changes},
    )
    for layer in range(case["config"]["num_hidden_layers"]):
        name, moe = f"model.layers.{layer}.mlp.", f"model.layers.{layer}.block_sparse_moe."
        dense = {part: case["tensors"].pop(f"{name}{part}_proj.weight") for part in ("gate", "up", "down")}
        case["tensors"][f"{moe}gate.weight"] = ["BF16", [experts, case["config"]["hidden_size"]]]
        for expert in range(experts):
            for part, projection in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
                case["tensors"][f"{moe}experts.{expert}.{part}.weight"] = dense[projection]
    return case | {"tensors": dict(sorted(case["tensors"].items()))}


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


def gemma2_case(directory: str, changes: Case) -> Case:
    """A Gemma 2: a llama with two more norms in each layer."""
    config = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 32, "tie_word_embeddings": True}
    between = {
        f"model.layers.{layer}.{name}_feedforward_layernorm.weight": ["BF16", [64]]
        for layer in range(2) for name in ("pre", "post")
    }  # fmt: skip
    return llama_case(directory, {**config, **changes}, extra=between)


CASES: dict[str, Case] = {
    "llama-gqa": llama_case("Tiny-Llama-GQA", {}),
    "llama-biases-tied-f16": llama_case(
        "llama-2-7b-chat-hf", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, "F16"
    ),
    "llama-head-dim": llama_case("tiny-v0.2", {"head_dim": 32}, "F32"),
    "llama-no-kv": llama_case("Yi-tiny-34B", {"num_key_value_heads": None}),
    "llama-linear": llama_case("CodeLlama-7b-Instruct-hf", {"rope_scaling": {"type": "linear", "factor": 2}}),
    "llama-dynamic": llama_case("deepseek-llm-7b", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "llama-yarn": llama_case("Yarn-Llama-2-7b-64k", {"rope_scaling": YARN}),
    "llama-yarn-short": llama_case(
        "yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 8.0, "rope_theta": 50000.0}, "rope_theta": None}
    ),
    "llama-longrope": llama_case(
        "longrope",
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
    ),
    "llama3": llama_case(
        "Llama-3.2-1B-Instruct",
        {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "head_dim": 64, "tie_word_embeddings": True},
    ),
    "llama3-128": llama_case(
        "Meta-Llama-3.1-8B", {"rope_scaling": {**LLAMA3, "factor": 8.0}, "rope_theta": 500000.0, "head_dim": 128}
    ),
    "llama3-odd": llama_case(
        "odd",
        {
            "rope_scaling": {**LLAMA3, "factor": 5.5, "low_freq_factor": 0.7, "original_max_position_embeddings": 300},
            "rope_theta": 12345.5,
            "head_dim": 96,
        },
    ),
    "llama3-defaults": llama_case("defaults", {"rope_scaling": LLAMA3, "rope_theta": None, "head_dim": 80}),
    "llama-tied-with-head": llama_case(
        "SmolLM2-135M", {"tie_word_embeddings": True}, extra={"lm_head.weight": ["BF16", [512, 64]]}
    ),
    "llama-mixed-types": llama_case("mixed-types-3b", {}, "BF16", norms="F32"),
    "llama-sparse-config": llama_case(
        "sparse",
        {"max_position_embeddings": None, "rms_norm_eps": None, "rope_theta": None, "num_key_value_heads": None},
    ),
    "llama-inv-freq": llama_case(
        "old-llama-13b-v1.3",
        {},
        "F16",
        extra={f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": ["F32", [8]] for layer in range(2)},
    ),
    "llama-bare": llama_case("bare", {"architectures": ["LlamaModel"]}, prefix=""),
    "llama-raw-config": llama_case("raw", {"model_type": "llama_of_mine"}),
    "llama-card": llama_case(
        "somewhere", {"_name_or_path": "Org-name/Tiny-LLaMA-1.1B-intermediate-v2"},
        files={"README.md": CARD, "generation_config.json": GENERATION},
    ),
    "mistral": llama_case(
        "Mistral-7B-Instruct-v0.3",
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 4096,
         "num_attention_heads": 8, "rope_theta": 1000000.0},
    ),
    "mistral-sparse-config": llama_case(
        "mistral-sparse",
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_attention_heads": 8,
         "num_key_value_heads": None, "max_position_embeddings": None, "rms_norm_eps": None},
        shaped={"num_key_value_heads": 8},
    ),
    "mistral-head-dim": llama_case(
        "Mistral-Nemo-12B-2407",
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "head_dim": 24, "sliding_window": None},
    ),
    "mixtral": mixtral_case("Mixtral-8x7B-v0.1", {}),
    "mixtral-many": mixtral_case("tiny-moe", {"num_experts_per_tok": 4, "head_dim": 16}, experts=12),
    "qwen2": qwen_case("Qwen2.5-0.5B-Instruct", 2, {"rope_theta": 1000000.0}),
    "qwen2-tied": qwen_case("qwen-yarn", 2, {"tie_word_embeddings": True, "rope_scaling": YARN, "head_dim": 32}),
    "qwen3": qwen_case("Qwen3-0.6B", 3, {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-sparse-config": qwen_case("Qwen3-sparse", 3, {"max_position_embeddings": None, "rope_theta": None}),
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
}  # fmt: skip
