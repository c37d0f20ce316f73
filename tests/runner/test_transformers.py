"""The forward pass against transformers and against llama.cpp, on random models of transformers that quantcli converts.

Texts are longer than windows. What llama.cpp cannot run, or runs in another way, is only compared with transformers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference_logits import generate
from tiny_model import write_converted
from transformers_model import VOCABULARY, random_model

from quantcli.architectures.expressions import Expression
from quantcli.architectures.loader import graph_of
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.gguf.reader import open_gguf
from quantcli.runner.cache import Cache
from quantcli.runner.model import Model

TOKENS = (np.random.PCG64(3).random_raw(64) % (VOCABULARY - 3) + 3).tolist()
SHORT = [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5]


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}}


def yarn(**parameters: Any) -> dict[str, Any]:
    return rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, **parameters)


BASE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}  # fmt: skip
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
MOE = {**BASE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2}
ALL_KEYS = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
NEOX = {**ALL_KEYS, **rope(rope_type="default", partial_rotary_factor=0.5)}
FALCON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LATENT = {
    **BASE, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LONG = {**BASE, **rope(rope_type="longrope", short_factor=SHORT, long_factor=[4 * factor for factor in SHORT])}
GRANITE = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7, "logits_scaling": 2.0}
LLAMA4 = {
    **BASE, "num_hidden_layers": 5, "intermediate_size_mlp": 96, "num_local_experts": 4, "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2, "head_dim": 16,
}  # fmt: skip

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "arcee": ("arcee", BASE),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "cohere": ("cohere", BASE),
    "cohere-head-norms": ("cohere", {**BASE, "use_qk_norm": True}),
    "cohere2": ("cohere2", {**BASE, "num_hidden_layers": 5, "sliding_window": 8}),
    "deepseek2": ("deepseek_v2", LATENT),
    "deepseek2-lite": ("deepseek_v2", {**LATENT, "num_hidden_layers": 26, "q_lora_rank": None,
                                       **yarn(mscale=0.707, mscale_all_dim=0.707)}),
    "deepseek3": ("deepseek_v3", {**LATENT, "n_group": 4, "topk_group": 2, "norm_topk_prob": True,
                                  "scoring_func": "sigmoid", "routed_scaling_factor": 2.5,
                                  **yarn(mscale=1.0, mscale_all_dim=1.0)}),
    "ernie4_5": ("ernie4_5", {**BASE, "head_dim": 16}),
    "ernie4_5-moe": ("ernie4_5_moe", {**BASE, "head_dim": 16, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48,
                                      "moe_layer_start_index": 1, "moe_layer_end_index": 3, "moe_layer_interval": 1,
                                      "num_hidden_layers": 3, "moe_num_shared_experts": 1}),
    "exaone4": ("exaone4", {**BASE, "num_hidden_layers": 64, "sliding_window": 8, "sliding_window_pattern": 4}),
    "falcon": ("falcon", FALCON),
    "falcon-groups": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-many-keys": ("falcon", {**FALCON, "multi_query": False}),
    "gemma": ("gemma", {**BASE, "head_dim": 32}),
    "gemma2": ("gemma2", {**BASE, "head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32}),
    "gemma3": ("gemma3_text", {**BASE, "head_dim": 32, "num_hidden_layers": 7, "sliding_window": 8,
                               "query_pre_attn_scalar": 32}),
    "glm": ("glm", {**BASE, "head_dim": 16, "rms_norm_eps": 1e-5}),
    "glm4": ("glm4", {**BASE, "head_dim": 16}),
    "glm4moe": ("glm4_moe", {**BASE, "head_dim": 16, "num_hidden_layers": 3, "n_routed_experts": 8, "n_shared_experts": 1,
                             "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
                             "n_group": 1, "topk_group": 1, "use_qk_norm": True}),
    "gpt-bigcode": ("gpt_bigcode", GPT),
    "gpt-bigcode-many-keys": ("gpt_bigcode", {**GPT, "multi_query": False}),
    "gpt-oss": ("gpt_oss", {**LOCAL, "num_hidden_layers": 3, "head_dim": 16, "sliding_window": 8, **yarn()}),
    "gpt2": ("gpt2", {**GPT, "tie_word_embeddings": False, "n_inner": 96}),
    "gptneox": ("gpt_neox", NEOX),
    "gptneox-sequential": ("gpt_neox", {**NEOX, "use_parallel_residual": False}),
    "granite": ("granite", {**BASE, **GRANITE}),
    "granitemoe": ("granitemoe", {**LOCAL, **GRANITE}),
    "granitemoe-shared": ("granitemoeshared", {**LOCAL, "shared_intermediate_size": 48}),
    "granitehybrid": ("granitemoehybrid", {
        **LOCAL, "num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 8,
        "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_expand": 2, "mamba_chunk_size": 16,
        "shared_intermediate_size": 48}),
    "hunyuan-dense": ("hunyuan_v1_dense", {**BASE, "head_dim": 16}),
    "lfm2": ("lfm2", {**BASE, "num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"],
                      "block_auto_adjust_ff_dim": False}),
    "lfm2moe": ("lfm2_moe", {**MOE, "num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"],
                             "num_dense_layers": 2, "use_expert_bias": True, "norm_topk_prob": True}),
    "llama": ("llama", {**BASE, "attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama-linear": ("llama", {**BASE, **rope(rope_type="linear", factor=2.0)}),
    "llama-yarn": ("llama", {**BASE, **yarn()}),
    "llama3": ("llama", {**BASE, **rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                        original_max_position_embeddings=32)}),
    "llama4": ("llama4_text", LLAMA4),
    "mamba": ("mamba", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "time_step_rank": 4}),
    "mamba-falcon": ("falcon_mamba", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "time_step_rank": 4,
                                      "mixer_rms_eps": 1e-5}),
    "mamba2": ("mamba2", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "num_heads": 8, "head_dim": 16,
                          "n_groups": 2, "chunk_size": 16}),
    "ministral3": ("ministral3", {**BASE, "head_dim": 16, "sliding_window": None,
                                  **yarn(mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.2)}),
    "minicpm3": ("minicpm3", {**LATENT, "qk_nope_head_dim": 12, "scale_emb": 12, "scale_depth": 1.4,
                              "dim_model_base": 256}),
    "mixtral": ("mixtral", LOCAL),
    "mpt": ("mpt", {"d_model": 96, "n_heads": 6, "n_layers": 2, "max_seq_len": 128, "attn_config": {"clip_qkv": 0.5}}),
    "nemotron": ("nemotron", BASE),
    "olmo": ("olmo", {**BASE, "clip_qkv": 0.5}),
    "olmo2": ("olmo2", BASE),
    "olmo3": ("olmo3", {**BASE, "num_hidden_layers": 5, "sliding_window": 8, **yarn()}),
    "olmoe": ("olmoe", {**BASE, "num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
    "phi2": ("phi", {**ALL_KEYS, "intermediate_size": 256}),
    "phi3": ("phi3", BASE),
    "phi3-long": ("phi3", {**LONG, "original_max_position_embeddings": 32}),
    "phi3-short": ("phi3", {**LONG, "max_position_embeddings": 1024, "original_max_position_embeddings": 512}),
    "phimoe": ("phimoe", {**LOCAL, "attention_bias": True, "lm_head_bias": True}),
    "qwen2": ("qwen2", BASE),
    "qwen2moe": ("qwen2_moe", {**MOE, "shared_expert_intermediate_size": 64}),
    "qwen3": ("qwen3", {**BASE, "head_dim": 32}),
    "qwen3moe": ("qwen3_moe", {**MOE, "head_dim": 32, "norm_topk_prob": True}),
    "seed-oss": ("seed_oss", {**BASE, "head_dim": 16}),
    "smollm3": ("smollm3", {**BASE, "num_hidden_layers": 5}),
    "stablelm": ("stablelm", BASE),
    "stablelm-head-norms": ("stablelm", {**BASE, "qk_layernorm": True, "use_qkv_bias": True,
                                         "use_parallel_residual": True}),
    "starcoder2": ("starcoder2", BASE),
}  # fmt: skip

NOT_AS_LLAMA_CPP = {
    "cohere-head-norms": "llama.cpp reads these norms in models of 64 layers and more only",
    "phimoe": "llama.cpp norms by square means and routes by softmax",
}


def logits(place: Path, kind: str, sizes: dict[str, Any]) -> tuple[NDArray, NDArray, str]:
    """What a random model answers after each of TOKENS here, and in transformers; and its activation."""
    made = random_model(place / "model", kind, sizes)
    import torch

    with open_checkpoint(place / "model") as checkpoint:
        write_converted(checkpoint, place / "model.gguf")
    with open_gguf(place / "model.gguf") as file:
        model = Model(file)
    found = model.forward(TOKENS, Cache(model.sizes, 256, "f32"), every=True)
    with torch.no_grad():
        return found, made(torch.tensor([TOKENS])).logits[0].numpy(), model.graph.activation


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers_and_of_the_reference(name, tmp_path):
    found, expected, activation = logits(tmp_path, *MODELS[name])
    # Falcon, GPT-NeoX and MPT have the exact GELU, of which GGUF readers know the usual approximation alone.
    share = 5e-4 if activation == "gelu" else 1e-5
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.ptp(expected))
    if name in NOT_AS_LLAMA_CPP:
        return
    pytest.importorskip("llama_cpp", reason="the reference is not installed")
    theirs, _ = generate(tmp_path / "model.gguf", TOKENS)
    np.testing.assert_allclose(found, theirs, rtol=0, atol=share * np.ptp(theirs))


def test_chunks_and_temperature_of_long_texts(tmp_path, monkeypatch):
    """Llama 4 has chunks of 8,192 positions, and steps of temperature as long; here they are shorter, as in no file."""
    short = replace(graph_of("llama4"), window=Expression("12"), temperature_length=Expression("16"), variants=())
    monkeypatch.setattr("quantcli.runner.hyperparameters.graph_of", lambda gguf, extra_file=None: short)
    sizes = {**LLAMA4, "attention_chunk_size": 12, "floor_scale": 16}
    found, expected, _ = logits(tmp_path, "llama4_text", sizes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.ptp(expected))
