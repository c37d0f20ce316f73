"""Families with layer norms and biases, GPT-2 and what came of it, for `fuzz_architectures.py`."""

from __future__ import annotations

from architecture_cases_gpt import falcon_case, gptneox_case, mpt_case, stablelm_case
from architecture_shapes import Case
from fuzz_families import COMMON, LLAMA, OMIT, YES_NO, Family, divisor, rope, times, without


def _falcon_old(directory: str, made: Case) -> Case:
    groups, heads = made.pop("groups"), made.pop("heads")
    changes = {"num_attention_heads": None, "num_hidden_layers": None, "n_head": heads, "n_layer": 2, **made}
    changes |= {"architectures": ["RWForCausalLM"], "model_type": "RefinedWeb"}
    changes |= {"n_head_kv": groups} if groups > 1 else {"multi_query": True}
    return falcon_case(directory, changes, heads=heads, kv_heads=groups, norms=2 if groups > 1 else 1)


def _mpt(directory: str, made: Case) -> Case:
    attention = {key[5:]: made.pop(key) for key in list(made) if key.startswith("attn_")}
    return mpt_case(directory, made, attention, kv_heads=attention.get("kv_n_heads", 4), bias=made.get("no_bias") is False)


def _neox(directory: str, made: Case) -> Case:
    return gptneox_case(directory, made, heads=made["num_attention_heads"])


def _stablelm(directory: str, made: Case) -> Case:
    return stablelm_case(directory, made, kv_heads=made["num_key_value_heads"])


FAMILIES: dict[str, Family] = {
    "phi2": Family(
        {**LLAMA, "rms_norm_eps": [OMIT], "layer_norm_eps": [OMIT, 1e-6], "num_key_value_heads": [OMIT],
         "qk_layernorm": [OMIT, OMIT, False, True], "rope_parameters": rope(partial=(OMIT, 0.5, 0.25))}, "phi",
    ),
    "gpt2": Family(
        {**COMMON, "n_head": [1, 2, 3], "n_embd": times("n_head", [16, 24]), "n_layer": [1, 2], "n_positions": [32, 100],
         "n_inner": [OMIT, None, 80], "layer_norm_epsilon": [OMIT, 1e-6], "num_hidden_layers": [OMIT], "n_ctx": [32, 100]},
        "gpt2",
    ),
    "gpt_bigcode": Family(
        {**COMMON, "n_head": [1, 2, 3], "n_embd": times("n_head", [16, 24]), "n_layer": [1, 2], "n_positions": [32, 100],
         "n_inner": [OMIT, 80], "num_hidden_layers": [OMIT], "multi_query": [OMIT, True, False]}, "gpt_bigcode",
    ),
    "gptneox": Family(
        {**without(LLAMA, "rms_norm_eps", "num_key_value_heads"), "layer_norm_eps": [OMIT, 1e-6],
         "use_parallel_residual": [OMIT, True, False], "attention_bias": [OMIT, True, False],
         "rope_parameters": rope(partial=(OMIT, 0.25, 1.0))}, "gpt_neox",
    ),
    "gptneox-old": Family(
        {"num_attention_heads": [1, 2, 4], "rotary_pct": [0.25, 1.0, 0.5], "use_parallel_residual": [True, False, None],
         "attention_bias": [OMIT, False], "rotary_emb_base": [10000, None]}, build=_neox,
    ),
    "starcoder2": Family(
        {**LLAMA, "rms_norm_eps": [OMIT], "norm_epsilon": [OMIT, 1e-6], "use_bias": [OMIT, True, False],
         "sliding_window": [OMIT, 64]}, "starcoder2",
    ),
    "falcon": Family(
        {**COMMON, "num_attention_heads": [1, 2, 3, 4], "hidden_size": times("num_attention_heads", [8, 16]),
         "num_kv_heads": divisor("num_attention_heads"), "multi_query": [OMIT, True, False],
         "new_decoder_architecture": [OMIT, True, False], "parallel_attn": [OMIT, True, False], "bias": [OMIT, True],
         "num_ln_in_parallel_attn": [OMIT, 1, 2], "ffn_hidden_size": [OMIT, 80], "layer_norm_epsilon": [OMIT, 1e-6],
         "alibi": [OMIT, True]}, "falcon",
    ),
    "falcon-old": Family({"heads": [2, 4, 6], "groups": [1, 2], "tie_word_embeddings": [OMIT, False]}, build=_falcon_old),
    "mpt": Family(
        {"no_bias": [OMIT, True, False], "attn_alibi": YES_NO, "attn_alibi_bias_max": [8, 16], "attn_clip_qkv": [None, 6.0],
         "attn_kv_n_heads": [OMIT, 1, 2], "expansion_ratio": [OMIT, 4]}, build=_mpt,
    ),
    "mpt-saved": Family(
        {"n_heads": [1, 2, 4], "d_model": times("n_heads", [16]), "n_layers": [1, 2], "max_seq_len": [OMIT, 64],
         "vocab_size": [100], "expansion_ratio": [OMIT, 2], "tie_word_embeddings": [OMIT, True, False]}, "mpt",
    ),
    "bloom": Family(
        {**COMMON, "n_head": [1, 2, 4], "hidden_size": times("n_head", [16, 24]), "n_layer": [1, 2],
         "layer_norm_epsilon": [OMIT, 1e-6], "num_hidden_layers": [OMIT], "seq_length": [OMIT, 64]}, "bloom",
        bare="BloomModel",
    ),
    "stablelm": Family(
        {**LLAMA, "rms_norm_eps": [OMIT], "layer_norm_eps": [OMIT, 1e-6], "use_qkv_bias": [OMIT, True, False],
         "qk_layernorm": [OMIT, True, False], "use_parallel_residual": [OMIT, True, False],
         "rope_parameters": rope(partial=(OMIT, 0.25, 0.5))}, "stablelm",
    ),
    "stablelm-old": Family(
        {"num_key_value_heads": [1, 2, 4], "use_qkv_bias": YES_NO, "rope_pct": [0.25, 0.5], "norm_eps": [1e-5],
         "layer_norm_eps": [None], "model_type": ["stablelm_epoch"], "architectures": [["StableLMEpochForCausalLM"]]},
        build=_stablelm,
    ),
}  # fmt: skip
