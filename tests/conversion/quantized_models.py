"""Small models to convert whose weights somebody has quantized before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

TOKENIZER = Path(__file__).parents[1] / "golden/stories260K/tokenizer.model"
HIDDEN, INNER, VOCABULARY = 64, 96, 512
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCABULARY,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
LAYER = "model.layers.0"
LINEAR = {
    **{f"{LAYER}.self_attn.{part}_proj": (HIDDEN, HIDDEN) for part in "qkvo"},
    **{f"{LAYER}.mlp.{part}_proj": (INNER, HIDDEN) for part in ("gate", "up")},
    f"{LAYER}.mlp.down_proj": (HIDDEN, INNER),
}
OTHER = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN),
    "model.norm.weight": (HIDDEN,), f"{LAYER}.input_layernorm.weight": (HIDDEN,),
    f"{LAYER}.post_attention_layernorm.weight": (HIDDEN,),
}  # fmt: skip
UNTURNED = ("attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""Tensors of a layer whose rows stay in their order."""


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def on_grid(shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """Levels under a scale for each 32, of which few reach the extremes."""
    random = np.random.default_rng(0)
    levels = random.integers(low, high + 1, (*shape[:-1], shape[-1] // 32, 32))
    scales = random.uniform(0.001, 0.1, (*shape[:-1], shape[-1] // 32, 1)).astype(np.float16)
    return (levels.astype(np.float32) * scales).reshape(shape)


def write_model(place: Path, tensors: dict[str, np.ndarray], quantization: dict[str, Any] | None = None) -> Path:
    """A llama of `tensors` and, where those do not say, ordinary weights; the directory."""
    place.mkdir()
    shutil.copy(TOKENIZER, place)
    config = CONFIG if quantization is None else {**CONFIG, "quantization_config": quantization}
    (place / "config.json").write_text(json.dumps(config))
    made = {name.rpartition(".")[0] for name in tensors}
    shapes = OTHER | {f"{name}.weight": shape for name, shape in LINEAR.items() if name not in made}
    tensors = {name: normal(*shape) for name, shape in shapes.items() if name not in tensors} | tensors
    header, data = {}, b""
    names = {"float32": "F32", "float16": "F16", "int32": "I32"}
    for name, values in tensors.items():
        span = [len(data), len(data) + values.nbytes]
        header[name] = {"dtype": names[values.dtype.name], "shape": list(values.shape), "data_offsets": span}
        data += values.tobytes()
    text = json.dumps(header).encode()
    (place / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return place


def gptq_model(place: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The model with all linear layers in symmetric GPTQ of 4 bits, and what their weights are."""
    tensors, weights = {}, {}
    for name, (outputs, inputs) in LINEAR.items():
        random = np.random.default_rng(outputs)
        levels = random.integers(1, 16, (inputs, outputs))
        scales = random.uniform(0.001, 0.1, (inputs // 32, outputs)).astype(np.float16)
        packed = (levels.reshape(-1, 8, outputs) << np.arange(0, 32, 4)[:, None]).sum(1)
        tensors |= {
            f"{name}.qweight": packed.astype(np.uint32).view(np.int32),
            f"{name}.qzeros": np.full((inputs // 32, outputs // 8), 0x77777777, np.int32),
            f"{name}.scales": scales,
        }
        weights[name] = ((levels - 8).astype(np.float32) * scales.astype(np.float32).repeat(32, 0)).T
    return write_model(place, tensors, {"quant_method": "gptq", "bits": 4, "group_size": 32}), weights
