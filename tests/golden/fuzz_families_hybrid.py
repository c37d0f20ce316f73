"""Families with Mamba layers or short convolutions, for `fuzz_architectures.py`."""

from __future__ import annotations

from random import Random

from architecture_shapes import Case
from fuzz_families import LLAMA, OMIT, Family, times, without

MAMBA: Case = {
    "vocab_size": [64, 100, 257],
    "hidden_size": [32, 48],
    "state_size": [4, 8, 16],
    "num_hidden_layers": [1, 2],
    "conv_kernel": [OMIT, 2, 3],
    "expand": [OMIT, 2, 1],
    "use_bias": [OMIT, True, False],
    "use_conv_bias": [OMIT, True],
    "time_step_rank": [OMIT, 3, "auto"],
    "layer_norm_epsilon": [OMIT, 1e-6],
    "tie_word_embeddings": [OMIT, True, False],
}


def _heads_of_mamba2(random: Random, made: Case) -> int:
    return made["hidden_size"] * made.get("expand", 2) // made["head_dim"]


def _hybrid_layers(random: Random, made: Case) -> list[str]:
    kinds = random.choice([["mamba", "attention"], ["mamba", "attention"], ["mamba"], ["attention"]])
    return [random.choice(kinds) for _ in range(made["num_hidden_layers"])]


SCALES: Case = {
    name: [OMIT, 0.25, 12]
    for name in ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
}

FAMILIES: dict[str, Family] = {
    "mamba": Family(MAMBA, "mamba"),
    "falcon_mamba": Family(MAMBA, "falcon_mamba"),
    "mamba2": Family(
        {**without(MAMBA, "time_step_rank"), "n_groups": [1, 2], "head_dim": [8, 16], "num_heads": _heads_of_mamba2,
         "rms_norm": [OMIT, True]}, "mamba2",
    ),
    "granitehybrid": Family(
        {**LLAMA, **SCALES, "hidden_size": times("num_attention_heads", [16, 32]), "num_local_experts": [0, 0, 2, 5],
         "num_experts_per_tok": [1, 2], "shared_intermediate_size": [40, 24], "attention_bias": [OMIT, True],
         "layer_types": _hybrid_layers, "mamba_n_heads": [2, 4], "mamba_n_groups": [1, 2], "mamba_d_state": [4, 16],
         "mamba_d_conv": [OMIT, 3], "mamba_expand": [OMIT, 2, 1], "mamba_conv_bias": [OMIT, True],
         "mamba_proj_bias": [OMIT, True, False], "position_embedding_type": [OMIT, "rope", "nope"]}, "granitemoehybrid",
    ),
    "lfm2": Family(
        {**without(LLAMA, "rms_norm_eps"), "norm_eps": [OMIT, 1e-6], "conv_bias": [OMIT, OMIT, True],
         "conv_L_cache": [OMIT, 3, 4], "block_multiple_of": [16, 32, 256], "block_ffn_dim_multiplier": [OMIT, 1.0, 1.3],
         "block_auto_adjust_ff_dim": [OMIT, True, False], "full_attn_idxs": lambda random, made: random.choice(
             [OMIT, [0], list(range(made["num_hidden_layers"]))]),
         "layer_types": lambda random, made: OMIT if "full_attn_idxs" in made else [
             random.choice(["conv", "full_attention"]) for _ in range(made["num_hidden_layers"])]}, "lfm2",
    ),
    "lfm2moe": Family(
        {**without(LLAMA, "rms_norm_eps"), "norm_eps": [OMIT, 1e-6], "conv_bias": [OMIT, OMIT, True],
         "conv_L_cache": [OMIT, 4], "num_experts": [1, 2, 5], "num_experts_per_tok": [1, 2], "num_dense_layers": [0, 1, 2],
         "moe_intermediate_size": [16, 40], "use_expert_bias": [OMIT, True, False], "norm_topk_prob": [OMIT, False],
         "routed_scaling_factor": [OMIT, 2.0], "layer_types": lambda random, made: [
             random.choice(["conv", "full_attention"]) for _ in range(made["num_hidden_layers"])]}, "lfm2_moe",
    ),
}  # fmt: skip
