"""Families of mixtures of experts, and those with latent attention, for `fuzz_architectures.py`."""

from __future__ import annotations

from collections.abc import Callable

from architecture_cases_latent_attention import deepseek2_case, minicpm3_case
from architecture_cases_mixture_of_experts import deepseek1_case
from architecture_shapes import Case
from fuzz_families import HEAD, LLAMA, OMIT, RAW, Choices, Family, layers_of, rope, without
from fuzz_families_decoders import SCALES

EXPERTS: Choices = {"num_experts": [1, 2, 3, 5, 11], "num_experts_per_tok": [1, 2], "norm_topk_prob": [OMIT, True, False]}


def _deepseek(builder: Callable[..., Case]) -> Callable[[str, Case], Case]:
    def build(directory: str, made: Case) -> Case:
        keys = {"dense": made.pop("dense"), "experts": made.pop("experts"), "shared": made.pop("shared")}
        return builder(directory, made, **keys)

    return build


FAMILIES: dict[str, Family] = {
    "mixtral": Family(
        {**LLAMA, **HEAD, "num_local_experts": [1, 2, 3, 11], "num_experts_per_tok": [OMIT, 1, 2]}, "mixtral"
    ),
    "qwen2moe": Family(
        {**LLAMA, **EXPERTS, "moe_intermediate_size": [16, 40], "shared_expert_intermediate_size": [24, 32],
         "qkv_bias": [OMIT, True, False], "decoder_sparse_step": [OMIT, OMIT, 1, 2]}, "qwen2_moe",
    ),
    "qwen3moe": Family(
        {**LLAMA, **HEAD, **EXPERTS, "moe_intermediate_size": [16, 40], "attention_bias": [OMIT, True, False],
         "mlp_only_layers": [OMIT, OMIT, [], [0]], "decoder_sparse_step": [OMIT, OMIT, 2]}, "qwen3_moe",
    ),
    "phimoe": Family(
        {**LLAMA, "attention_bias": [OMIT, True], "lm_head_bias": [OMIT, True], "num_local_experts": [1, 2, 5],
         "num_experts_per_tok": [OMIT, 2], "original_max_position_embeddings": [OMIT, 64], "sliding_window": [OMIT, 32],
         "rope_parameters": rope(kinds=("default", "default", "longrope"))}, "phimoe", only=("PhiMoEForCausalLM",),
    ),
    "olmoe": Family({**LLAMA, **EXPERTS, "clip_qkv": [OMIT, 8.0], "attention_bias": [OMIT, True]}, "olmoe"),
    "granitemoe": Family(
        {**LLAMA, **SCALES, "attention_bias": [OMIT, True], "num_local_experts": [1, 2, 5], "num_experts_per_tok": [1, 2]},
        "granitemoe",
    ),
    "granitemoeshared": Family(
        {**LLAMA, **SCALES, "num_local_experts": [0, 1, 2, 5], "num_experts_per_tok": [1, 2],
         "shared_intermediate_size": [OMIT, 0, 40], "attention_bias": [OMIT, True]}, "granitemoeshared",
    ),
    "deepseek": Family(
        {**RAW, "dense": [0, 1, 2], "experts": [1, 2, 7], "shared": [1, 2], "attention_bias": [OMIT, True],
         "norm_topk_prob": [OMIT, True, False]}, build=_deepseek(deepseek1_case),
    ),
    "deepseek2-raw": Family(
        {**without(RAW, "rope_scaling"), "dense": [0, 1], "experts": [1, 2, 5], "shared": [1, 2], "queries": [None, 28],
         "topk_method": [OMIT, "greedy"], "scoring_func": ["softmax", "sigmoid"], "norm_topk_prob": [OMIT, True, False],
         "routed_scaling_factor": [OMIT, 1.0, 16.0], "num_key_value_heads": lambda _, made: made["num_attention_heads"],
         "rope_scaling": rope(lambda made: 8, kinds=("default", "yarn", "yarn"))},
        build=lambda directory, made: deepseek2_case(directory, made, **{
            key: made.pop(key) for key in ("dense", "experts", "shared", "queries")}),
    ),
    "deepseek_v2": Family(
        {**without(LLAMA, "num_key_value_heads"), "num_key_value_heads": lambda _, made: made["num_attention_heads"],
         "q_lora_rank": [None, 24], "kv_lora_rank": [20, 16], "qk_nope_head_dim": [12, 10], "qk_rope_head_dim": [8],
         "v_head_dim": [10, 16], "n_routed_experts": [2, 5], "n_shared_experts": [OMIT, 1, 2],
         "num_experts_per_tok": [1, 2],
         "moe_intermediate_size": [24], "first_k_dense_replace": [OMIT, 0, 1, 2], "topk_method": [OMIT, "greedy"],
         "norm_topk_prob": [OMIT, True], "attention_bias": [OMIT, OMIT, True], "n_group": [OMIT, 1],
         "topk_group": [OMIT, 1], "rope_parameters": rope(lambda made: 8, kinds=("default", "yarn", "linear"))},
        "deepseek_v2",
    ),
    "deepseek_v3": Family(
        {**without(LLAMA, "num_key_value_heads"), "num_key_value_heads": lambda _, made: made["num_attention_heads"],
         "q_lora_rank": [None, 24], "kv_lora_rank": [20, 16], "qk_nope_head_dim": [12, 10], "qk_rope_head_dim": [8],
         "v_head_dim": [10, 16], "n_routed_experts": [2, 4], "n_shared_experts": [OMIT, 1, 2],
         "num_experts_per_tok": [1, 2],
         "moe_intermediate_size": [24], "first_k_dense_replace": [OMIT, 0, 1, 2], "norm_topk_prob": [OMIT, True, False],
         "attention_bias": [OMIT, OMIT, True], "n_group": [OMIT, 1, 2], "topk_group": [OMIT, 1],
         "routed_scaling_factor": [OMIT, 2.5],
         "rope_parameters": rope(lambda made: 8, kinds=("default", "yarn", "linear"))},
        "deepseek_v3",
    ),
    "minicpm3": Family(
        {**RAW, "rope_scaling": rope(lambda made: 8), "num_key_value_heads": lambda _, made: made["num_attention_heads"]},
        build=minicpm3_case,
    ),
    "gpt-oss": Family(
        {**LLAMA, "head_dim": [16, 32], "num_local_experts": [1, 2, 5], "num_experts_per_tok": [1, 2],
         "sliding_window": [OMIT, 64], "layer_types": layers_of("sliding_attention", "full_attention"),
         "attention_bias": [OMIT, True, False]}, "gpt_oss",
    ),
    "llama4": Family(
        {**LLAMA, "head_dim": [16, 24], "attention_bias": [OMIT, True], "num_local_experts": [1, 2, 5],
         "num_experts_per_tok": [1], "intermediate_size_mlp": [40, 64], "interleave_moe_layer_step": [OMIT, 1, 2],
         "moe_layers": lambda random, made: random.choice([OMIT, OMIT, [0], []]),
         "layer_types": layers_of("full_attention", "chunked_attention"), "no_rope_layers": [OMIT],
         "attention_chunk_size": [OMIT, 64], "use_qk_norm": [OMIT, False]}, "llama4_text",
    ),
    "glm4moe": Family(
        {**LLAMA, "head_dim": [OMIT, 16, 32], "attention_bias": [OMIT, True, False], "use_qk_norm": [OMIT, True, False],
         "n_routed_experts": [1, 2, 5], "num_experts_per_tok": [1, 2], "moe_intermediate_size": [16, 40],
         "n_shared_experts": [OMIT, 1, 2], "first_k_dense_replace": [OMIT, 0, 1], "norm_topk_prob": [OMIT, True, False],
         "routed_scaling_factor": [OMIT, 2.5], "n_group": [OMIT, 1], "topk_group": [OMIT, 1],
         "rope_parameters": rope(partial=(OMIT, 0.5))}, "glm4_moe",
    ),
    "dots1": Family(
        {**LLAMA, "head_dim": [OMIT, OMIT, 16], "attention_bias": [OMIT, OMIT, True], "n_routed_experts": [1, 2, 5],
         "num_experts_per_tok": [1, 2], "moe_intermediate_size": [16, 40], "n_shared_experts": [1, 2],
         "first_k_dense_replace": [OMIT, 0, 1], "norm_topk_prob": [OMIT, True, False], "n_group": [OMIT, 1],
         "routed_scaling_factor": [OMIT, 2.5]}, "dots1",
    ),
    "ernie4_5_moe": Family(
        {**LLAMA, "head_dim": [OMIT, OMIT, 16], "use_bias": [OMIT, True], "moe_num_experts": [2, 5], "moe_k": [1, 2],
         "moe_intermediate_size": [16, 40], "moe_num_shared_experts": [OMIT, 0, 1, 2],
         "moe_layer_start_index": [OMIT, 0, 1], "moe_layer_interval": [OMIT, 1, 2]}, "ernie4_5_moe",
    ),
}  # fmt: skip
