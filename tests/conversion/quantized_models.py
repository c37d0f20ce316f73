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


def on_grid(shape: tuple[int, ...], low: int, high: int, group: int = 32) -> np.ndarray:
    """Levels under a scale for each 32, or as many as `group` says, of which few reach the extremes."""
    random = np.random.default_rng(0)
    levels = random.integers(low, high + 1, (*shape[:-1], shape[-1] // group, group))
    scales = random.uniform(0.001, 0.1, (*shape[:-1], shape[-1] // group, 1)).astype(np.float16)
    return (levels.astype(np.float32) * scales).reshape(shape)


def bf16(x: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers rounded to BF16, halves to even: uint16, which `write_model` stores as BF16."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers of BF16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write_model(place: Path, tensors: dict[str, np.ndarray], quantization: dict[str, Any] | None = None) -> Path:
    """A llama of `tensors` and, where those do not say, ordinary weights; the directory."""
    place.mkdir()
    shutil.copy(TOKENIZER, place)
    config = CONFIG if quantization is None else {**CONFIG, "quantization_config": quantization}
    (place / "config.json").write_text(json.dumps(config))
    made = {name.rpartition(".")[0] for name in tensors}
    shapes = OTHER | {f"{name}.weight": shape for name, shape in LINEAR.items() if name not in made}
    write_tensors(place, {name: normal(*shape) for name, shape in shapes.items() if name not in tensors} | tensors)
    return place


def write_tensors(place: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write the model.safetensors of a directory."""
    header, data = {}, b""
    names = {"uint8": "F8_E4M3", "float32": "F32", "float16": "F16", "uint16": "BF16", "int32": "I32", "int64": "I64"}
    for name, values in tensors.items():
        span = [len(data), len(data) + values.nbytes]
        header[name] = {"dtype": names[values.dtype.name], "shape": list(values.shape), "data_offsets": span}
        data += values.tobytes()
    text = json.dumps(header).encode()
    (place / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


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


def awq_model(place: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The model with all linear layers in AWQ, with zero points of any height, and what their weights are."""
    tensors, weights = {}, {}

    def packed(levels: np.ndarray) -> np.ndarray:
        words = levels.reshape(len(levels), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].astype(np.uint64)
        return (words << np.arange(0, 32, 4, dtype=np.uint64)).sum(2).astype(np.uint32).view(np.int32)

    for name, (outputs, inputs) in LINEAR.items():
        random = np.random.default_rng(inputs)
        levels, zeros = (random.integers(0, 16, (rows, outputs)) for rows in (inputs, inputs // 32))
        scales = random.uniform(0.001, 0.1, zeros.shape).astype(np.float16)
        tensors |= {f"{name}.qweight": packed(levels), f"{name}.qzeros": packed(zeros), f"{name}.scales": scales}
        weights[name] = ((levels - zeros.repeat(32, 0)) * scales.astype(np.float32).repeat(32, 0)).T.astype(np.float32)
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    return write_model(place, tensors, config), weights


def packed_model(place: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The model with all linear layers in compressed-tensors of 4 bits, symmetric, a BF16 scale for a row, and what their
    weights are."""
    tensors, weights = {}, {}
    for name, (outputs, inputs) in LINEAR.items():
        random = np.random.default_rng(outputs)
        levels = random.integers(-8, 8, (outputs, inputs))
        scales = bf16(random.uniform(0.001, 0.1, (outputs, 1)).astype(np.float32))
        words = (levels.reshape(outputs, -1, 8) + 8 << np.arange(0, 32, 4)).sum(2)
        tensors |= {
            f"{name}.weight_packed": words.astype(np.uint32).view(np.int32),
            f"{name}.weight_scale": scales,
            f"{name}.weight_shape": np.array([outputs, inputs], np.int64),
        }
        weights[name] = levels.astype(np.float32) * from_bf16(scales)
    groups = {"0": {"weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}}}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    return write_model(place, tensors, config), weights
