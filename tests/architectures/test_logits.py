"""Models of transformers, converted, give the logits in llama.cpp that they give in transformers.

This asks of no reference converter, so it also holds for what that cannot read: GPT-2 and GPT-NeoX as transformers 5 saves
them, StableLM with norms for each head, Falcon and StarCoder with keys of their own. Phi 3.5 MoE is not here: llama.cpp
norms and routes in other ways than transformers does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from quantcli.architectures.loader import find_architecture
from quantcli.architectures.transforms import as_float32
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.gguf.spec import Field, string, u32
from quantcli.formats.gguf.writer import GGUFWriter

TOKENS = [3, 14, 15, 92, 65, 35, 89, 79, 3, 23, 84, 62, 64, 33, 83, 27]
VOCABULARY = 128
SHARE = 5e-4
"""How far logits may be apart, as a share of their range: llama.cpp looks GELU up in a table of halves."""

GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32}
LLAMA = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip
EXPERTS = {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
NEOX = {**LLAMA, "num_key_value_heads": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                                                 "partial_rotary_factor": 0.5}}  # fmt: skip
GRANITE4 = {
    **LLAMA, "num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 4,
    "num_experts_per_tok": 2, "shared_intermediate_size": 48, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 2,
    "mamba_d_state": 16, "embedding_multiplier": 12.0, "logits_scaling": 3.0, "residual_multiplier": 0.22,
    "attention_multiplier": 0.2, "position_embedding_type": "nope",
}  # fmt: skip
DENSE4 = {**GRANITE4, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 96}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
MLA = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
DEEPSEEK = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "num_hidden_layers": 3, "num_key_value_heads": 4,
}  # fmt: skip
SHORT = [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5]
FALCON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT),
    "gpt2-untied": ("gpt2", {**GPT, "tie_word_embeddings": False, "n_inner": 96}),
    "gptneox": ("gpt_neox", NEOX),
    "gptneox-sequential": ("gpt_neox", {**NEOX, "use_parallel_residual": False}),
    "gpt-bigcode": ("gpt_bigcode", GPT),
    "gpt-bigcode-many-keys": ("gpt_bigcode", {**GPT, "multi_query": False}),
    "starcoder2": ("starcoder2", LLAMA),
    "falcon": ("falcon", FALCON),
    "falcon-many-keys": ("falcon", {**FALCON, "multi_query": False}),
    "falcon-groups": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 32}),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "phi2": ("phi", {**LLAMA, "num_key_value_heads": None, "intermediate_size": 256}),
    "stablelm": ("stablelm", LLAMA),
    "stablelm-heads": ("stablelm", {**LLAMA, "qk_layernorm": True, "use_qkv_bias": True, "use_parallel_residual": True}),
    "phi3": ("phi3", LLAMA),
    "phi3-long": ("phi3", {**LLAMA, "max_position_embeddings": 1024, "original_max_position_embeddings": 512,
                           "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT,
                                               "long_factor": [4 * factor for factor in SHORT]}}),
    "qwen2moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 64}),
    "qwen3moe": ("qwen3_moe", {**EXPERTS, "head_dim": 32, "norm_topk_prob": True}),
    "gemma3": ("gemma3_text", {**LLAMA, "head_dim": 32, "num_hidden_layers": 7, "sliding_window": 8,
                               "query_pre_attn_scalar": 32}),
    "arcee": ("arcee", LLAMA),
    "ernie4_5-moe": ("ernie4_5_moe", {**LLAMA, "num_hidden_layers": 3, "moe_num_experts": 4, "moe_k": 2,
                                      "intermediate_size": 128, "moe_intermediate_size": 32}),
    "ministral3": ("ministral3", {**LLAMA, "head_dim": 16}),
    "glm4moe": ("glm4_moe", {**LLAMA, "head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "use_qk_norm": True,
                             "moe_intermediate_size": 32, "num_hidden_layers": 3, "routed_scaling_factor": 1.5}),
    "lfm2moe": ("lfm2_moe", {**EXPERTS, "num_hidden_layers": 4, "num_dense_layers": 1,
                             "layer_types": ["conv", "full_attention", "conv", "full_attention"]}),
    "granitehybrid": ("granitemoehybrid", GRANITE4),
    "granitehybrid-dense": ("granitemoehybrid", DENSE4),
    "granite4": ("granitemoehybrid", {**DENSE4, "layer_types": ["attention"] * 3, "position_embedding_type": "rope"}),
    "llama3": ("llama", {**LLAMA, "attention_bias": True, "rope_parameters": LLAMA3}),
    "mixtral": ("mixtral", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", LLAMA),
    "qwen3": ("qwen3", {**LLAMA, "head_dim": 32}),
    "gemma": ("gemma", {**LLAMA, "head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {**LLAMA, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}),
    "olmo": ("olmo", {**LLAMA, "clip_qkv": 0.5}),
    "olmo2": ("olmo2", LLAMA),
    "olmoe": ("olmoe", {**EXPERTS, "intermediate_size": 32, "num_key_value_heads": 4}),
    "granite": ("granite", {**LLAMA, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
                            "attention_multiplier": 0.3}),
    "granite-llama3": ("granite", {**LLAMA, "rope_parameters": LLAMA3}),
    "granitemoe": ("granitemoe", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe-shared": ("granitemoeshared", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2,
                                               "shared_intermediate_size": 40}),
    "command-r": ("cohere", {**LLAMA, "logit_scale": 0.25}),
    "cohere2": ("cohere2", {**LLAMA, "rotary_pct": 1.0, "sliding_window": 8, "num_hidden_layers": 5}),
    "glm4": ("glm4", {**LLAMA, "head_dim": 32, "attention_bias": True}),
    "nemotron": ("nemotron", {**LLAMA, "head_dim": 16}),
    "smollm3": ("smollm3", {**LLAMA, "num_hidden_layers": 5}),
    "ernie4_5": ("ernie4_5", {**LLAMA, "head_dim": 32}),
    "seed-oss": ("seed_oss", {**LLAMA, "head_dim": 32, "attention_bias": True}),
    "hunyuan-dense": ("hunyuan_v1_dense", {**LLAMA, "head_dim": 32}),
    "exaone": ("exaone", {**LLAMA, "rope_parameters": LLAMA3}),
    "minicpm3": ("minicpm3", {**LLAMA, "num_key_value_heads": 4, **MLA, "dim_model_base": 256, "scale_emb": 12,
                              "scale_depth": 1.4}),
    "dots1": ("dots1", {**LLAMA, **DEEPSEEK, "norm_topk_prob": True, "routed_scaling_factor": 2.5}),
    "deepseek2": ("deepseek_v2", {**LLAMA, **MLA, **DEEPSEEK, "q_lora_rank": None}),
    "deepseek3": ("deepseek_v3", {**LLAMA, **MLA, **DEEPSEEK, "n_group": 1, "topk_group": 1,
                                  "scoring_func": "sigmoid", "topk_method": "noaux_tc"}),
    "gpt-oss": ("gpt_oss", {**LLAMA,
                            "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "llama4": ("llama4_text", {**LLAMA, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 1,
                               "intermediate_size_mlp": 96, "num_hidden_layers": 4, "interleave_moe_layer_step": 2}),
    "lfm2": ("lfm2", {**LLAMA, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"],
                      "block_multiple_of": 32}),
    "mamba": ("mamba", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16}),
    "mamba-untied": ("mamba", {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8, "conv_kernel": 3,
                               "time_step_rank": 6, "tie_word_embeddings": False}),
    "falcon-mamba": ("falcon_mamba", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16}),
    "mamba2": ("mamba2", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "num_heads": 4, "head_dim": 32,
                          "n_groups": 2}),
}  # fmt: skip


def saved_model(place: Path, kind: str, sizes: dict[str, Any], factory: str = "AutoModelForCausalLM") -> Any:
    """A random model of transformers, saved in a directory."""
    torch = pytest.importorskip("torch", reason="the models are made by torch")
    transformers = pytest.importorskip("transformers", reason="the models are those of transformers")
    given = {key: value for key, value in sizes.items() if value is not None}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(kind, vocab_size=VOCABULARY, **{**ids, **given})
    made = getattr(transformers, factory).from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in made.parameters():  # layers start out too much alike to tell mistakes by
            parameter.add_(0.1 * torch.randn(parameter.shape))
    made.save_pretrained(place)
    return made.eval()


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path):
    """A random model of transformers, and the directory it is saved in."""
    return saved_model(tmp_path / "model", *MODELS[request.param]), tmp_path / "model"


def convert(source: Path, target: Path, more: Mapping[str, Field] = MappingProxyType({})) -> None:
    """A file without a tokenizer, since tokens are given."""
    with open_checkpoint(source) as checkpoint:
        architecture = find_architecture(checkpoint.config)
        tensors = [as_float32(tensor) for tensor in architecture.tensors(checkpoint.tensors, checkpoint.config)]
        metadata = architecture.early_metadata(checkpoint.config) | architecture.metadata(checkpoint.config, 0)
        metadata |= {"tokenizer.ggml.model": string("none"), f"{architecture.gguf}.vocab_size": u32(VOCABULARY), **more}
        with GGUFWriter(target, metadata, tensors) as writer:
            for index, tensor in enumerate(tensors):
                writer.write(index, 0, tensor.load().view(np.uint8).reshape(-1))


def test_logits_equal_those_of_transformers(model, tmp_path: Path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="the reference is not installed")
    import torch

    made, source = model
    convert(source, tmp_path / "model.gguf")
    with torch.no_grad():
        expected = made(torch.tensor([TOKENS])).logits[0].numpy()
    reference = llama_cpp.Llama(
        str(tmp_path / "model.gguf"), n_ctx=32, n_threads=1, logits_all=True, verbose=False,
        type_k=0, type_v=0, flash_attn=False,
    )  # fmt: skip
    reference.eval(TOKENS)
    found = reference.scores[: len(TOKENS), :VOCABULARY]
    reference.close()
    np.testing.assert_allclose(found, expected, rtol=0, atol=SHARE * np.ptp(expected))
