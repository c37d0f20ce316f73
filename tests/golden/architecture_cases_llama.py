"""Cases of llamas and Mistrals: RoPE scaling, keys that are absent, null or elsewhere, types, model cards."""

from __future__ import annotations

from architecture_shapes import LINEAR, LLAMA3, YARN, Case, configured, llama_case, renamed

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


def bare(case: Case, architecture: str, wrapping: str) -> Case:
    """The model of the case without its head, within a larger one."""
    tensors = {
        f"{wrapping}{name.removeprefix('model.')}": kind for name, kind in case["tensors"].items() if "lm_head" not in name
    }
    return case | {"config": case["config"] | {"architectures": [architecture]}, "tensors": tensors}


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
    "llama-bare-wrapped": bare(llama_case("inside", {}), "LlamaModel", "language_model."),
    "llama-raw-config": llama_case("raw", {"model_type": "llama_of_mine"}),
    "llama-raw-silent": llama_case(
        "raw-silent", {"model_type": "llama_of_mine", "tie_word_embeddings": None}, shaped={"tie_word_embeddings": True}
    ),
    "llama-null-theta": configured(llama_case("null-theta", {"rope_scaling": LINEAR}), rope_theta=None, head_dim=None),
    "llama-text-model": renamed(llama_case("text-model", {}), {"model.": "model.text_model."}),
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
    "mistral-null-keys": configured(
        llama_case(
            "null-keys",
            {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 4,
             "rope_theta": None},
        ),
        num_key_value_heads=None,
    ),
}  # fmt: skip
