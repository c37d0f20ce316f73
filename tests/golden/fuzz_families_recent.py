"""Families since 2025, and language models inside larger ones, for `fuzz_architectures.py`."""

from __future__ import annotations

from architecture_cases_enclosed import LLAVA, enclosed
from architecture_cases_llama_shaped import qwen_case
from architecture_cases_mixture_of_experts import qwen3moe_case
from architecture_cases_recent_experts import (
    MELLUM_ROPE,
    cohere_moe_case,
    exaone_moe_case,
    granite_moe_swa_case,
    granite_swa_case,
    hunyuan_moe_case,
    hyv3_case,
    ling_case,
    minimax_case,
)
from architecture_cases_related import bamba_case, exaone4_5_case, flash_case, mistral4_case, youtu_case
from architecture_shapes import Case, llama_case
from fuzz_families import HEAD, LLAMA, OMIT, Family, layers_of, rope

ANY = {"rms_norm_eps": [1e-5, 1e-6], "rope_theta": [1e4, 5e5], "max_position_embeddings": [64, 4096]}


def _internvl(directory: str, made: Case) -> Case:
    return enclosed(
        qwen_case(directory, 2, made), "InternVLChatModel internvl_chat", "llm_config", "language_model.model.", LLAVA,
        named=True,
    )  # fmt: skip


def _mellum(directory: str, made: Case) -> Case:
    return qwen3moe_case(directory, {"architectures": ["MellumForCausalLM"], "model_type": "mellum", **made})


def _llava(directory: str, made: Case) -> Case:
    return enclosed(
        llama_case(directory, made), "LlavaForConditionalGeneration llava", "text_config", "language_model.model.", LLAVA
    )


FAMILIES: dict[str, Family] = {
    "internvl": Family(ANY, build=_internvl),
    "llava": Family({**ANY, "head_dim": [OMIT, 32]}, build=_llava),
    "mellum": Family(
        {**ANY, "sliding_window": [OMIT, 16], "use_sliding_window": [OMIT, True, False], "rope_theta": [OMIT],
         "rope_parameters": [OMIT, MELLUM_ROPE], "layer_types": [OMIT, ["full_attention", "sliding_attention"]]},
        build=_mellum,
    ),
    "minimax-m2": Family({**ANY, "scoring_func": ["sigmoid"]}, build=minimax_case),
    "ling": Family({**ANY, "norm_topk_prob": [True, False]}, build=lambda directory, made: ling_case(directory, made, 1)),
    "ling-2": Family(
        {**ANY, "score_function": ["sigmoid"], "routed_scaling_factor": [1.0, 2.5], "partial_rotary_factor": [OMIT, 0.5]},
        build=ling_case,
    ),
    "exaone-moe": Family({**ANY, "routed_scaling_factor": [1.0, 2.5]}, build=exaone_moe_case),
    "exaone4.5": Family({**ANY, "sliding_window": [OMIT, 16]}, build=exaone4_5_case),
    "hunyuan-3": Family({**ANY, "router_scaling_factor": [OMIT, 2.5]}, build=hyv3_case),
    "cohere2moe": Family(
        {**ANY, "rms_norm_eps": [None, 1e-5], "norm_topk_prob": [OMIT, True, False]}, build=cohere_moe_case
    ),
    "hunyuan-moe": Family(ANY, build=hunyuan_moe_case),
    "granite-swa": Family(
        {**LLAMA, **HEAD, "sliding_window": [OMIT, 16], "layer_types": layers_of("full_attention", "sliding_attention"),
         "rope_parameters": rope(kinds=("default", "llama3"))}, "granite_swa",
    ),
    "granite-swa-raw": Family({**ANY, "no_rope_layers": [OMIT, [0, 1, 1, 0]]}, build=granite_swa_case),
    "granite-moe-swa": Family({**ANY, "sliding_window": [OMIT, 16]}, build=granite_moe_swa_case),
    "glm4-flash": Family(
        {**ANY, "routed_scaling_factor": [OMIT, 1.8], "tie_word_embeddings": [OMIT, True]}, build=flash_case
    ),
    "youtu": Family({**ANY, "tie_word_embeddings": [OMIT, True, False]}, build=youtu_case),
    "mistral4": Family({**ANY, "architectures": [["Ministral3ForCausalLM"]]}, build=mistral4_case),
    "bamba": Family({**ANY, "attn_rotary_emb": [OMIT, 8]}, build=bamba_case),
}  # fmt: skip
