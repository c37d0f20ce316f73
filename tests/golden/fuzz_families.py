"""Random checkpoints of every family, for `fuzz_architectures.py`: configurations, and the tensors that go with them.

A family that transformers knows is a table of choices for the arguments of its configuration; the model is made, saved, and
asked for its tensors. The others are the cases of the `architecture_cases*.py`, with random changes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from architecture_cases import Case
from architecture_cases_gpt import falcon_case, gptneox_case, mpt_case, stablelm_case
from architecture_cases_renamed import (
    baichuan_case,
    chatglm_case,
    exaone_case,
    internlm2_case,
    minicpm3_case,
    minicpm_case,
    nemotron_case,
)
from architecture_cases_sparse import deepseek1_case, deepseek2_case

OMIT = object()
"""The choice of saying nothing."""

Choices = Mapping[str, Any]
"""Key -> a list to choose from, or a function of the random numbers and the choices so far."""

YES_NO = [True, False]


def chosen(choices: Choices, random: Random) -> Case:
    """One configuration."""
    made: Case = {}
    for key, options in choices.items():
        value = options(random, made) if callable(options) else random.choice(options)
        if value is not OMIT:
            made[key] = value
    return made


def divisor(of: str) -> Callable[[Random, Case], Any]:
    """A number that divides another of the configuration, or nothing."""

    def choose(random: Random, made: Case) -> Any:
        return random.choice([number for number in range(1, made[of] + 1) if made[of] % number == 0] + [OMIT])

    return choose


def times(of: str, options: list[int]) -> Callable[[Random, Case], Any]:
    """A multiple of another number of the configuration."""
    return lambda random, made: made[of] * random.choice(options)


def layers_of(*kinds: str) -> Callable[[Random, Case], Any]:
    """A kind for every layer, or nothing."""
    return lambda random, made: random.choice([OMIT, [random.choice(kinds) for _ in range(made["num_hidden_layers"])]])


def head_size(made: Case) -> int:
    """The size of a head, as most families count it."""
    return made.get("head_dim") or made["hidden_size"] // made["num_attention_heads"]


def rope(
    size: Callable[[Case], int] = head_size, partial: tuple[Any, ...] = (OMIT,), kinds: tuple[str, ...] = ()
) -> Callable[[Random, Case], Any]:
    """Rotary parameters as transformers 5 has them, with any of the scalings there are."""

    def choose(random: Random, made: Case) -> Any:
        kind = random.choice(kinds or ("default", "default", "linear", "dynamic", "yarn", "longrope", "llama3"))
        share = random.choice(partial)
        pairs = int(size(made) * (share if isinstance(share, float) else 1.0)) // 2
        context = [OMIT, 64, 512, 8192]
        listed: dict[str, Choices] = {
            "default": {},
            "linear": {"factor": [2, 2.0, 8.0]},
            "dynamic": {"factor": [2.0, 1.5]},
            "yarn": {
                "factor": [4.0, 16], "original_max_position_embeddings": context, "beta_fast": [OMIT, 32, 16.0],
                "beta_slow": [OMIT, 1, 2.0], "attention_factor": [OMIT, OMIT, 1.1, None], "mscale": [OMIT, 1.0],
                "mscale_all_dim": [OMIT, 0.707, 1], "truncate": [OMIT, False],
            },
            "longrope": {
                "factor": [OMIT, 4.0], "original_max_position_embeddings": context,
                "short_factor": [[1.0 + 0.1 * place for place in range(pairs)]],
                "long_factor": [[1 + place for place in range(pairs)]], "attention_factor": [OMIT, 1.2],
            },
            "llama3": {
                "factor": [8.0, 32], "low_freq_factor": [1.0, 1], "high_freq_factor": [4.0, 3.5],
                "original_max_position_embeddings": context,
            },
        }  # fmt: skip
        table = {"rope_type": kind, **chosen({"rope_theta": [OMIT, 10000, 500000.0, 1e6], **listed[kind]}, random)}
        if share is not OMIT:
            table["partial_rotary_factor"] = share
        return random.choice([OMIT, table, table, table])

    return choose


COMMON: Choices = {
    "num_hidden_layers": [1, 2, 3],
    "vocab_size": [64, 100, 257],
    "tie_word_embeddings": [OMIT, True, False],
}

LLAMA: Choices = {
    **COMMON,
    "num_attention_heads": [1, 2, 3, 4, 6, 8],
    "num_key_value_heads": divisor("num_attention_heads"),
    "hidden_size": times("num_attention_heads", [8, 16, 24]),
    "intermediate_size": [32, 48, 100],
    "max_position_embeddings": [OMIT, 64, 2048, 131072],
    "rms_norm_eps": [OMIT, 1e-5, 1e-6],
    "rope_parameters": rope(),
}

HEAD: Choices = {"head_dim": [OMIT, OMIT, 16, 24, 32]}
EXPERTS: Choices = {"num_experts": [1, 2, 3, 5, 11], "num_experts_per_tok": [1, 2], "norm_topk_prob": [OMIT, True, False]}
BIASES: Choices = {"attention_bias": [OMIT, True, False], "mlp_bias": [OMIT, True, False]}
SCALES: Choices = {
    name: [OMIT, 1.0, 0.25, 12, 0.0]
    for name in ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
}


@dataclass(frozen=True)
class Family:
    """What makes a random case: choices, and the model type of transformers or a function of the chosen values."""

    choices: Choices
    kind: str = ""
    build: Callable[[str, Case], Case] | None = None
    bare: str | None = None
    """The class of the model without its head, where the reference knows it."""

    only: tuple[str, ...] = field(default=())
    """The classes to have, where transformers writes another name than the reference knows."""

    models: tuple[str, ...] = ("AutoModelForCausalLM",)
    """Classes of transformers, one of which makes the model."""

    files: Mapping[str, str] = field(default_factory=dict)
    """What lies beside the checkpoint."""

    def case(self, random: Random) -> Case:
        """A random checkpoint.

        Raises:
            Exception: what transformers raises where the choices do not suit each other.
        """
        made = chosen(self.choices, random)
        case = self.build("a-model-1B", made) if self.build else saved(self.kind, made, random.choice(self.models))
        if self.only:
            case["config"]["architectures"] = [random.choice(self.only)]
        return {**case, "files": {**self.files, **case.get("files", {})}}


def saved(kind: str, sizes: Case, maker: str = "AutoModelForCausalLM") -> Case:
    """What transformers saves of a model with this configuration."""
    import torch
    import transformers

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    config = transformers.AutoConfig.for_model(kind, **{**ids, **sizes})
    made_by = getattr(transformers, maker)
    model = made_by.from_config(config, dtype=torch.bfloat16) if maker.startswith("Auto") else made_by(config).bfloat16()
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        written = json.loads((Path(place) / "config.json").read_text())
        data = (Path(place) / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    tensors = {name: [entry["dtype"], entry["shape"]] for name, entry in sorted(header.items())}
    return {"directory": "a-model-1B", "config": written, "tensors": tensors}


def _falcon_old(directory: str, made: Case) -> Case:
    groups, heads = made.pop("groups"), made.pop("heads")
    changes = {"num_attention_heads": None, "num_hidden_layers": None, "n_head": heads, "n_layer": 2, **made}
    changes |= {"architectures": ["RWForCausalLM"], "model_type": "RefinedWeb"}
    changes |= {"n_head_kv": groups} if groups > 1 else {"multi_query": True}
    return falcon_case(directory, changes, heads=heads, kv_heads=groups, norms=2 if groups > 1 else 1)


def _deepseek(builder: Callable[..., Case]) -> Callable[[str, Case], Case]:
    def build(directory: str, made: Case) -> Case:
        keys = {"dense": made.pop("dense"), "experts": made.pop("experts"), "shared": made.pop("shared")}
        return builder(directory, made, **keys)

    return build


def _mpt(directory: str, made: Case) -> Case:
    attention = {key[5:]: made.pop(key) for key in list(made) if key.startswith("attn_")}
    return mpt_case(directory, made, attention, kv_heads=attention.get("kv_n_heads", 4), bias=made.get("no_bias") is False)


def _neox(directory: str, made: Case) -> Case:
    return gptneox_case(directory, made, heads=made["num_attention_heads"])


def _stablelm(directory: str, made: Case) -> Case:
    return stablelm_case(directory, made, kv_heads=made["num_key_value_heads"])


def _baichuan(directory: str, made: Case) -> Case:
    return baichuan_case(directory, made)


RAW: Choices = {
    "num_attention_heads": [1, 2, 4, 8],
    "num_key_value_heads": lambda random, made: random.choice(
        [number for number in (1, 2, 4, 8) if number <= made["num_attention_heads"]]
    ),
    "num_hidden_layers": [1, 2, 3],
    "tie_word_embeddings": [OMIT, True, False],
    "max_position_embeddings": [64, 2048],
    "rms_norm_eps": [1e-5, 1e-6],
    "rope_theta": [OMIT, 10000, 1e6],
    "rope_scaling": rope(lambda made: 64 // made["num_attention_heads"]),
}
"""For families whose cases have a hidden size of 64."""


def without(choices: Choices, *names: str) -> Choices:
    """The choices but for these."""
    return {key: value for key, value in choices.items() if key not in names}


FAMILIES: dict[str, Family] = {
    "llama": Family({**LLAMA, **HEAD, **BIASES, "rope_parameters": rope()}, "llama", bare="LlamaModel"),
    "mistral": Family({**LLAMA, **HEAD, "sliding_window": [OMIT, None, 64]}, "mistral"),
    "mixtral": Family(
        {**LLAMA, **HEAD, "num_local_experts": [1, 2, 3, 11], "num_experts_per_tok": [OMIT, 1, 2]}, "mixtral"
    ),
    "qwen2": Family(
        {**LLAMA, "use_sliding_window": [OMIT, True, False], "sliding_window": [OMIT, 32]}, "qwen2", bare="Qwen2Model"
    ),
    "qwen3": Family({**LLAMA, **HEAD, "attention_bias": [OMIT, True, False]}, "qwen3", bare="Qwen3Model"),
    "qwen2moe": Family(
        {**LLAMA, **EXPERTS, "moe_intermediate_size": [16, 40], "shared_expert_intermediate_size": [24, 32],
         "qkv_bias": [OMIT, True, False], "decoder_sparse_step": [OMIT, OMIT, 1, 2]}, "qwen2_moe",
    ),
    "qwen3moe": Family(
        {**LLAMA, **HEAD, **EXPERTS, "moe_intermediate_size": [16, 40], "attention_bias": [OMIT, True, False],
         "mlp_only_layers": [OMIT, OMIT, [], [0]], "decoder_sparse_step": [OMIT, OMIT, 2]}, "qwen3_moe",
    ),
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
    "phi2": Family(
        {**LLAMA, "rms_norm_eps": [OMIT], "layer_norm_eps": [OMIT, 1e-6], "num_key_value_heads": [OMIT],
         "qk_layernorm": [OMIT, OMIT, False, True], "rope_parameters": rope(partial=(OMIT, 0.5, 0.25))}, "phi",
    ),
    "phi3": Family(
        {**LLAMA, "original_max_position_embeddings": [OMIT, 64, 4096], "sliding_window": [OMIT, None, 32],
         "rope_parameters": rope(partial=(OMIT, 0.5, 1.0), kinds=("default", "longrope"))}, "phi3",
    ),
    "phimoe": Family(
        {**LLAMA, "attention_bias": [OMIT, True], "lm_head_bias": [OMIT, True], "num_local_experts": [1, 2, 5],
         "num_experts_per_tok": [OMIT, 2], "original_max_position_embeddings": [OMIT, 64], "sliding_window": [OMIT, 32],
         "rope_parameters": rope(kinds=("default", "default", "longrope"))}, "phimoe", only=("PhiMoEForCausalLM",),
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
    "olmo": Family({**LLAMA, "rms_norm_eps": [OMIT], "clip_qkv": [OMIT, 8.0], "attention_bias": [OMIT, True]}, "olmo"),
    "olmo2": Family({**LLAMA, "attention_bias": [OMIT, True]}, "olmo2"),
    "olmo3": Family(
        {**LLAMA, "attention_bias": [OMIT, True], "sliding_window": [OMIT, 64], "rope_parameters": [OMIT],
         "layer_types": layers_of("sliding_attention", "full_attention"), "rope_theta": [OMIT, 20000],
         "rope_scaling": [OMIT, {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2,
                                 "original_max_position_embeddings": 128}]}, "olmo3",
    ),
    "olmoe": Family({**LLAMA, **EXPERTS, "clip_qkv": [OMIT, 8.0], "attention_bias": [OMIT, True]}, "olmoe"),
    "granite": Family({**LLAMA, **BIASES, **SCALES, "head_dim": [OMIT, OMIT, 32]}, "granite"),
    "granitemoe": Family(
        {**LLAMA, **SCALES, "attention_bias": [OMIT, True], "num_local_experts": [1, 2, 5], "num_experts_per_tok": [1, 2]},
        "granitemoe",
    ),
    "granitemoeshared": Family(
        {**LLAMA, **SCALES, "num_local_experts": [0, 1, 2, 5], "num_experts_per_tok": [1, 2],
         "shared_intermediate_size": [OMIT, 0, 40], "attention_bias": [OMIT, True]}, "granitemoeshared",
    ),
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
    "minicpm3": Family(
        {**RAW, "rope_scaling": rope(lambda made: 8), "num_key_value_heads": lambda _, made: made["num_attention_heads"]},
        build=minicpm3_case,
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
    "lfm2": Family(
        {**without(LLAMA, "rms_norm_eps"), "norm_eps": [OMIT, 1e-6], "conv_bias": [OMIT, OMIT, True],
         "conv_L_cache": [OMIT, 3, 4], "block_multiple_of": [16, 32, 256], "block_ffn_dim_multiplier": [OMIT, 1.0, 1.3],
         "block_auto_adjust_ff_dim": [OMIT, True, False], "full_attn_idxs": lambda random, made: random.choice(
             [OMIT, [0], list(range(made["num_hidden_layers"]))]),
         "layer_types": lambda random, made: OMIT if "full_attn_idxs" in made else [
             random.choice(["conv", "full_attention"]) for _ in range(made["num_hidden_layers"])]}, "lfm2",
    ),
}  # fmt: skip
