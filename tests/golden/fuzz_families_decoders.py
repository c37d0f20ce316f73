"""Families of dense decoders for `fuzz_architectures.py`."""

from __future__ import annotations

from architecture_cases_encoders import LAST, MEAN
from architecture_cases_llama_shaped import minicpm_case
from architecture_cases_normalization import nemotron_case
from architecture_cases_renamed import baichuan_case, chatglm_case, exaone_case, internlm2_case
from architecture_shapes import Case
from fuzz_families import BIASES, HEAD, LLAMA, OMIT, RAW, Choices, Family, layers_of, rope, without

SCALES: Choices = {
    name: [OMIT, 1.0, 0.25, 12, 0.0]
    for name in ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
}


def _baichuan(directory: str, made: Case) -> Case:
    return baichuan_case(directory, made)


FAMILIES: dict[str, Family] = {
    "llama": Family({**LLAMA, **HEAD, **BIASES, "rope_parameters": rope()}, "llama", bare="LlamaModel"),
    "mistral": Family({**LLAMA, **HEAD, "sliding_window": [OMIT, None, 64]}, "mistral"),
    "qwen2": Family(
        {**LLAMA, "use_sliding_window": [OMIT, True, False], "sliding_window": [OMIT, 32]}, "qwen2", bare="Qwen2Model"
    ),
    "qwen3": Family({**LLAMA, **HEAD, "attention_bias": [OMIT, True, False]}, "qwen3", bare="Qwen3Model"),
    "gemma": Family({**LLAMA, "head_dim": [16, 24], "attention_bias": [OMIT, True]}, "gemma"),
    "gemma2": Family(
        {**LLAMA, "head_dim": [16, 24], "attention_bias": [OMIT, True], "sliding_window": [OMIT, 32],
         "attn_logit_softcapping": [OMIT, 30.0, None], "final_logit_softcapping": [OMIT, 20.0, None]}, "gemma2",
    ),
    "gemma3": Family(
        {**LLAMA, "head_dim": [16, 24], "attention_bias": [OMIT, True], "sliding_window": [OMIT, 32],
         "final_logit_softcapping": [OMIT, 20.0], "sliding_window_pattern": [OMIT, 1, 3], "rope_parameters": [OMIT],
         "layer_types": layers_of("sliding_attention", "full_attention"), "rope_theta": [OMIT, 20000],
         "rope_scaling": [OMIT, {"rope_type": "linear", "factor": 8.0}, {"type": "yarn", "factor": 4.0}],
         "rope_local_base_freq": [OMIT, 5000.0], "use_bidirectional_attention": [OMIT, OMIT, True]}, "gemma3_text",
    ),
    "phi3": Family(
        {**LLAMA, "original_max_position_embeddings": [OMIT, 64, 4096], "sliding_window": [OMIT, None, 32],
         "rope_parameters": rope(partial=(OMIT, 0.5, 1.0), kinds=("default", "longrope"))}, "phi3",
    ),
    "olmo": Family({**LLAMA, "rms_norm_eps": [OMIT], "clip_qkv": [OMIT, 8.0], "attention_bias": [OMIT, True]}, "olmo"),
    "olmo2": Family({**LLAMA, "attention_bias": [OMIT, True]}, "olmo2"),
    "olmo3": Family(
        {**LLAMA, "attention_bias": [OMIT, True], "sliding_window": [OMIT, 64], "rope_parameters": [OMIT],
         "layer_types": layers_of("sliding_attention", "full_attention"), "rope_theta": [OMIT, 20000],
         "rope_scaling": [OMIT, {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2,
                                 "original_max_position_embeddings": 128}]}, "olmo3",
    ),
    "granite": Family({**LLAMA, **BIASES, **SCALES, "head_dim": [OMIT, OMIT, 32]}, "granite"),
    "command-r": Family(
        {**LLAMA, "rms_norm_eps": [OMIT], "layer_norm_eps": [OMIT, 1e-6], "use_qk_norm": [OMIT, True],
         "attention_bias": [OMIT, True], "logit_scale": [OMIT, 0.25], "model_max_length": [OMIT, 4096]}, "cohere",
    ),
    "cohere2": Family(
        {**LLAMA, "rms_norm_eps": [OMIT], "layer_norm_eps": [OMIT, 1e-6], "attention_bias": [OMIT, OMIT, True],
         "logit_scale": [OMIT, 0.25], "rotary_pct": [1.0, 0.5], "sliding_window": [OMIT, 64]}, "cohere2",
    ),
    "internlm2": Family({**RAW, "bias": [False]}, build=internlm2_case),
    "baichuan": Family(
        {**without(RAW, "num_key_value_heads", "tie_word_embeddings"), "model_max_length": [OMIT, 4096]}, build=_baichuan
    ),
    "glm": Family({**LLAMA, "head_dim": [OMIT, 16, 32], "attention_bias": [OMIT, True, False],
                   "rope_parameters": rope(partial=(OMIT, 0.5, 0.25))}, "glm"),
    "glm4": Family({**LLAMA, "head_dim": [OMIT, None, 16, 32], "attention_bias": [OMIT, True, False],
                    "rope_parameters": rope(partial=(OMIT, 0.5, 0.25))}, "glm4"),
    "chatglm": Family(
        {**without(RAW, "tie_word_embeddings", "rope_scaling"), "kv_channels": [OMIT],
         "attention_bias": [True, None, False], "rope_ratio": [OMIT, 1, 500]}, build=chatglm_case,
    ),
    "exaone-saved": Family(LLAMA, "exaone"),
    "exaone": Family(
        {**RAW, "model_type": ["exaone_mine"], "head_dim": lambda _, made: 64 // made["num_attention_heads"]},
        build=exaone_case,
    ),
    "exaone4": Family(
        {**LLAMA, **HEAD, "sliding_window": [OMIT, None, 64], "sliding_window_pattern": [OMIT, 4, "LLLG", None],
         "layer_types": layers_of("sliding_attention", "full_attention")}, "exaone4",
    ),
    "nemotron": Family(
        {**without(LLAMA, "rms_norm_eps"), **HEAD, **BIASES, "norm_eps": [OMIT, 1e-6],
         "rope_parameters": rope(partial=(OMIT, 0.5, 0.25)), "partial_rotary_factor": [OMIT, 0.5, 1.0]}, "nemotron",
    ),
    "nemotron-raw": Family(
        {**without(RAW, "rms_norm_eps"), "rms_norm_eps": [None], "partial_rotary_factor": [0.5, 0.25],
         "model_type": ["nemotron_mine"], "factor": [OMIT, 2.0, 0]}, build=nemotron_case,
    ),
    "minicpm": Family(
        {**RAW, "scale_emb": [12, 1], "scale_depth": [1.4, 1], "dim_model_base": [32, 256]}, build=minicpm_case
    ),
    "smollm3": Family(
        {**LLAMA, **BIASES, "head_dim": [OMIT, 32], "no_rope_layer_interval": [OMIT, 2], "sliding_window": [OMIT, 32]},
        "smollm3",
    ),
    "ernie4_5": Family({**LLAMA, "head_dim": [OMIT, 16, 24], "use_bias": [OMIT, True]}, "ernie4_5"),
    "hunyuan-dense": Family(
        {**LLAMA, **HEAD, "attention_bias": [OMIT, True], "num_experts": [OMIT, 1],
         "rope_parameters": rope(kinds=("default", "linear", "yarn"))}, "hunyuan_v1_dense",
    ),
    "seed-oss": Family(
        {**LLAMA, "head_dim": [16, 24], **BIASES, "attention_out_bias": [OMIT, True, False]}, "seed_oss"
    ),
    "arcee": Family({**LLAMA, **HEAD, **BIASES}, "arcee"),
    "ministral3": Family({**LLAMA, **HEAD, "sliding_window": [OMIT, None, 64]}, "ministral3"),
    "gemma-embedding": Family(
        {**LLAMA, "head_dim": [16, 24], "sliding_window": [OMIT, 33], "rope_parameters": [OMIT],
         "layer_types": layers_of("sliding_attention", "full_attention"), "use_bidirectional_attention": [True, OMIT]},
        "gemma3_text", models=("Gemma3TextModel",), files=MEAN,
    ),
    "qwen3-embedding": Family({**LLAMA, **HEAD}, "qwen3", models=("Qwen3Model",), files=LAST),
}  # fmt: skip
