"""The adapters that LoRA goldens are made of, and the tiny models they belong to."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

Case = dict[str, Any]

LLAMA: Case = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

LORA: Case = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "bias": "none"}
"""What every adapter_config.json says."""


def decoder_tensors(config: Case, dtype: str) -> Case:
    """The tensors of a llama or Qwen 2."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [keys, hidden], "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, hidden], "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
    }  # fmt: skip
    found: Case = {"model.embed_tokens.weight": [dtype, [vocab, hidden]], "model.norm.weight": [dtype, [hidden]]}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = [dtype, [vocab, hidden]]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        for part, shape in shapes.items():
            found[f"{name}{part}.weight"] = [dtype, shape]
            if config["model_type"] == "qwen2" and part[-6:] in ("q_proj", "k_proj", "v_proj"):
                found[f"{name}{part}.bias"] = [dtype, shape[:1]]
        found[f"{name}input_layernorm.weight"] = [dtype, [hidden]]
        found[f"{name}post_attention_layernorm.weight"] = [dtype, [hidden]]
    return dict(sorted(found.items()))


def base(changes: Case | None = None, dtype: str = "BF16") -> Case:
    """A tiny model as `write_checkpoint` takes it."""
    config = {**LLAMA, **(changes or {})}
    return {"directory": "base", "config": config, "tensors": decoder_tensors(config, dtype)}


def pair(module: str, columns: int, rows: int, rank: int = 4, dtype: str = "F32") -> Case:
    """The matrices for one layer, as peft names them."""
    return {
        f"base_model.model.{module}.lora_A.weight": [dtype, [rank, columns]],
        f"base_model.model.{module}.lora_B.weight": [dtype, [rows, rank]],
    }


def embedding(module: str, rows: int, columns: int, rank: int = 4) -> Case:
    """The matrices for an embedding."""
    return {
        f"base_model.model.{module}.lora_embedding_A": ["F32", [rank, rows]],
        f"base_model.model.{module}.lora_embedding_B": ["F32", [columns, rank]],
    }


def adapter(tensors: Case, **config: Any) -> Case:
    """An adapter as `write_adapter` takes it."""
    return {"directory": "tiny-lora", "config": {**LORA, **config}, "tensors": dict(sorted(tensors.items()))}


Q, K, V, OUT = (f"self_attn.{letter}_proj" for letter in "qkvo")
ATTENTION = {
    **pair(f"model.layers.0.{Q}", 16, 16), **pair(f"model.layers.0.{K}", 16, 8), **pair(f"model.layers.1.{V}", 16, 8),
    **pair(f"model.layers.1.{OUT}", 16, 16), **pair("model.layers.1.mlp.gate_proj", 16, 24),
    **pair("model.layers.0.mlp.down_proj", 24, 16),
}  # fmt: skip
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
SOME = [0, 1]

QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
GPT2: Case = {
    "directory": "base",
    "config": {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2,
        "n_positions": 32, "n_ctx": 32, "vocab_size": 40, "layer_norm_epsilon": 1e-5, "n_inner": None,
    },
    "tensors": {
        "h.0.attn.c_attn.bias": ["F16", [48]], "h.0.attn.c_attn.weight": ["F16", [16, 48]],
        "h.0.attn.c_proj.bias": ["F16", [16]], "h.0.attn.c_proj.weight": ["F16", [16, 16]],
        "h.0.ln_1.bias": ["F16", [16]], "h.0.ln_1.weight": ["F16", [16]],
        "h.0.ln_2.bias": ["F16", [16]], "h.0.ln_2.weight": ["F16", [16]],
        "h.0.mlp.c_fc.bias": ["F16", [64]], "h.0.mlp.c_fc.weight": ["F16", [16, 64]],
        "h.0.mlp.c_proj.bias": ["F16", [16]], "h.0.mlp.c_proj.weight": ["F16", [64, 16]],
        "ln_f.bias": ["F16", [16]], "ln_f.weight": ["F16", [16]],
        "wpe.weight": ["F16", [32, 16]], "wte.weight": ["F16", [40, 16]],
    },
}  # fmt: skip

MERGES: dict[str, Case] = {
    "plain": {"base": base(), "adapter": adapter(ATTENTION, target_modules=TARGETS)},
    "half-precision": {
        "base": base(dtype="F16"),
        "adapter": adapter(pair(f"model.layers.0.{Q}", 16, 16, dtype="BF16"), target_modules=["layers.0.self_attn.q_proj"]),
    },
    "float32": {
        "base": base(dtype="F32"),
        "adapter": adapter(pair(f"model.layers.0.{Q}", 16, 16, dtype="F16"), target_modules=["layers.0.self_attn.q_proj"]),
    },
    "patterns": {
        "base": base(),
        "adapter": adapter(
            {
                **pair(f"model.layers.0.{Q}", 16, 16, 2), **pair(f"model.layers.1.{Q}", 16, 16, 3),
                **pair(f"model.layers.0.{V}", 16, 8), **pair(f"model.layers.1.{V}", 16, 8),
            },
            target_modules=["q_proj", "v_proj"],
            rank_pattern={r"layers\.1\.self_attn\.q_proj": 3, "q_proj": 2},
            alpha_pattern={"^model.layers.[01].self_attn.v_proj": 20, "v_proj": 1},
        ),
    },
    "rslora": {
        "base": base(),
        "adapter": adapter(
            {**pair(f"model.layers.0.{V}", 16, 8), **pair(f"model.layers.1.{V}", 16, 8)},
            target_modules=["v_proj"], use_rslora=True,
        ),
    },
    "dora": {
        "base": base(),
        "adapter": adapter(
            {
                **pair(f"model.layers.0.{Q}", 16, 16), **pair(f"model.layers.1.{Q}", 16, 16),
                **{f"base_model.model.model.layers.{n}.{Q}.lora_magnitude_vector": ["F32", [16]] for n in SOME},
            },
            target_modules=["q_proj"], use_dora=True,
        ),
    },
    "embeddings": {
        "base": base(),
        "adapter": adapter(
            {**embedding("model.embed_tokens", 40, 16), **pair("lm_head", 16, 40)},
            target_modules=["embed_tokens", "lm_head"],
        ),
    },
    "tied": {
        "base": base({"tie_word_embeddings": True}),
        "adapter": adapter(
            {**embedding("model.embed_tokens", 40, 16), **pair("lm_head", 16, 40)},
            target_modules=["embed_tokens", "lm_head"],
        ),
    },
    "tied-head": {
        "base": base({"tie_word_embeddings": True}),
        "adapter": adapter({**pair("lm_head", 16, 40)}, target_modules=["lm_head"]),
    },
    "whole": {
        "base": base({"tie_word_embeddings": True}),
        "adapter": adapter(
            {
                **pair(f"model.layers.0.{V}", 16, 8), **pair(f"model.layers.1.{V}", 16, 8),
                "base_model.model.lm_head.weight": ["BF16", [40, 16]],
            },
            target_modules=["v_proj"], modules_to_save=["lm_head"],
        ),
    },
    "tied-embedding-trained": {
        "base": base({"tie_word_embeddings": True}),
        "adapter": adapter(
            {
                **pair(f"model.layers.0.{V}", 16, 8), **pair(f"model.layers.1.{V}", 16, 8),
                "base_model.model.model.embed_tokens.weight": ["BF16", [40, 16]],
            },
            target_modules=["v_proj"], modules_to_save=["embed_tokens"],
        ),
    },
    "tied-embedding-trained-head-adapted": {
        "base": base({"tie_word_embeddings": True}),
        "adapter": adapter(
            {**pair("lm_head", 16, 40), "base_model.model.model.embed_tokens.weight": ["BF16", [40, 16]]},
            target_modules=["lm_head"], modules_to_save=["model.embed_tokens"],
        ),
    },
    "tied-both-trained": {
        "base": base({"tie_word_embeddings": True}),
        "adapter": adapter(
            {
                **pair(f"model.layers.0.{V}", 16, 8), **pair(f"model.layers.1.{V}", 16, 8),
                "base_model.model.model.embed_tokens.weight": ["BF16", [40, 16]],
                "base_model.model.lm_head.weight": ["BF16", [40, 16]],
            },
            target_modules=["v_proj"], modules_to_save=["embed_tokens", "lm_head"],
        ),
    },
    "no-alpha": {
        "base": base(),
        "adapter": adapter(
            {**pair(f"model.layers.0.{V}", 16, 8), **pair(f"model.layers.1.{V}", 16, 8)},
            target_modules=["v_proj"], lora_alpha=0, alpha_pattern={"layers.1.self_attn.v_proj": -3},
        ),
    },
    "biases": {
        "base": base(QWEN),
        "adapter": adapter(
            {
                **pair(f"model.layers.0.{V}", 16, 8), **pair(f"model.layers.1.{V}", 16, 8),
                **{f"base_model.model.model.layers.{n}.{V}.lora_B.bias": ["F32", [8]] for n in SOME},
            },
            target_modules=["v_proj"], lora_bias=True,
        ),
    },
    "gpt2": {
        "base": GPT2,
        "adapter": adapter(
            {
                **pair("transformer.h.0.attn.c_attn", 16, 48), **pair("transformer.h.0.attn.c_proj", 16, 16),
                **pair("transformer.h.0.mlp.c_proj", 64, 16),
            },
            target_modules=["c_attn", "c_proj"], fan_in_fan_out=True,
        ),
    },
}  # fmt: skip
"""What peft merges."""


def all_layers(case: Case, rank: int = 4, dtype: str = "F32") -> Case:
    """Matrices for every layer of a model but embeddings and routers."""
    tensors: Case = {}
    for name, (_, shape) in case["tensors"].items():
        skipped = any(word in name for word in ("embed", "wte", "wpe", "wpe", "router", ".gate.weight", "lm_head"))
        if len(shape) == 2 and name.endswith(".weight") and not skipped:
            tensors |= pair(name.removesuffix(".weight"), shape[1], shape[0], rank, dtype)
    return tensors


ARCHITECTURES: dict[str, Case] = {
    name: case
    for path in sorted(Path(__file__).parent.glob("architecture_cases*.py"))
    for name, case in runpy.run_path(str(path))["CASES"].items()
}
"""The models of the architecture goldens."""

CARD = """---
license: mit
base_model: mistralai/Mistral-7B-v0.1
tags: [lora, tiny]
library_name: peft
---
# An adapter
"""

FLOATS = ["f32", "f16", "bf16"]

CONVERSIONS: dict[str, tuple[str, list[str], Case]] = {
    # Every way in which weights are transformed, and every way to name them.
    **{
        name: (name, ["f32"], {})
        for name in (
            "llama-bare", "llama-biases-tied-f16", "mixtral", "qwen2moe", "phi3", "gemma2", "bloom-odd",
            "falcon-old-groups", "internlm2-groups", "granitemoe-shared", "chatglm", "gptneox", "mpt-groups", "stablelm",
            "command-r", "minicpm3", "llama4", "lfm2", "gpt-bigcode", "olmoe", "exaone", "glm4", "starcoder2", "phi2",
            "nemotron",
        )
    },
    "types": ("llama-gqa", FLOATS, {"dtype": "F16"}),
    "blocks": ("llama-gqa", ["q8_0"], {"rank": 32}),
    "blocks-fall-back": ("llama-gqa", ["q8_0"], {"rank": 12, "dtype": "BF16"}),
    "rank-one": ("llama-gqa", ["f16"], {"rank": 1}),
    "embeddings": (
        "llama-gqa", ["f32", "q8_0"],
        {"tensors": {**embedding("model.embed_tokens", 512, 64), **pair("lm_head", 64, 512)}, "frozen": True},
    ),
    "norms": (
        "gemma", ["f32"],
        {"tensors": {
            **pair("model.layers.1.mlp.up_proj", 64, 96),
            "base_model.model.model.layers.0.input_layernorm.weight": ["BF16", [64]],
            "base_model.model.model.norm.weight": ["F32", [64]],
        }},
    ),
    "mixed-types": (
        "llama-gqa", ["f32"],
        {"tensors": {
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ["BF16", [4, 64]],
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": ["F16", [64, 4]],
        }},
    ),
    "card": ("llama-gqa", ["f32"], {"files": {"README.md": CARD}, "directory": "Some-Model-7B-v1.5-lora-chat"}),
    "invoked": ("llama-gqa", ["f32"], {"config": {"alora_invocation_tokens": [1, 2, 3]}}),
}  # fmt: skip
"""What the reference converts: the model, the types, and what is particular about the adapter."""


def conversion(name: str) -> tuple[Case, Case]:
    """The model and the adapter of a case of `CONVERSIONS`."""
    architecture, _, particular = CONVERSIONS[name]
    case = ARCHITECTURES[architecture]
    rank = particular.get("rank", 4)
    tensors = particular.get("tensors") or all_layers(case, rank, particular.get("dtype", "F32"))
    if particular.get("frozen"):
        tensors["base_model.model.model.embed_tokens.base_layer.weight"] = ["BF16", [512, 64]]
    described = adapter(tensors, **{"r": rank, **particular.get("config", {})})
    return case, {**described, **{key: particular[key] for key in ("files", "directory") if key in particular}}
