"""Mixtures of experts whose experts were quantized: what is written is what a plain checkpoint of their weights gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_models import TOKENIZER, bf16, normal, write_tensors

from quantcli.conversion.convert import convert
from quantcli.formats.gguf.reader import open_gguf

HIDDEN, INNER, EXPERTS, VOCABULARY, BLOCK = 96, 64, 3, 64, (40, 56)
QWEN = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": HIDDEN, "intermediate_size": 128,
    "moe_intermediate_size": INNER, "num_experts": EXPERTS, "num_experts_per_tok": 2, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": VOCABULARY, "mlp_only_layers": [],
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "decoder_sparse_step": 1, "tie_word_embeddings": True,
}  # fmt: skip
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "num_hidden_layers": 1, "num_attention_heads": 3,
    "num_key_value_heads": 3, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}  # fmt: skip
PLAIN = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,),
    "model.layers.0.input_layernorm.weight": (HIDDEN,), "model.layers.0.post_attention_layernorm.weight": (HIDDEN,),
}  # fmt: skip


def linear(config: dict[str, Any], experts: str, parts: tuple[str, str, str]) -> dict[str, tuple[int, int]]:
    """The shapes of the linear layers; `parts` are the names of an expert's gate, up and down."""
    size = config.get("head_dim", 32)
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    heights = {"q": (queries, HIDDEN), "k": (keys, HIDDEN), "v": (keys, HIDDEN), "o": (HIDDEN, queries)}
    shapes = {f"model.layers.0.self_attn.{part}_proj": shape for part, shape in heights.items()}
    for expert in range(EXPERTS):
        for part, shape in zip(parts, ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)), strict=True):
            shapes[f"model.layers.0.{experts}.{expert}.{part}"] = shape
    return shapes


def eight_bits(name: str, rows: int, columns: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A weight in FP8 under scales for rectangles that go beyond it, and what it is, by the format's definition."""
    random = np.random.default_rng(len(name))
    codes = random.integers(0, 256, (rows, columns), dtype=np.uint8)
    codes[codes & 0x7F == 0x7F] = 0x80
    scales = random.uniform(0.001, 0.01, (-(-rows // BLOCK[0]), -(-columns // BLOCK[1]))).astype(np.float32)
    exponent, fraction = (codes >> 3 & 15).astype(int), (codes & 7) / 8
    magnitude = np.ldexp(fraction + (exponent > 0), np.maximum(exponent, 1) - 7).astype(np.float32)
    spread = scales.repeat(BLOCK[0], 0).repeat(BLOCK[1], 1)[:rows, :columns]
    weight = np.where(codes & 0x80, -magnitude, magnitude) * spread
    return {f"{name}.weight": codes, f"{name}.weight_scale_inv": scales}, weight


def gptq(name: str, rows: int, columns: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A weight in GPTQ of 4 bits with zero points, its columns in groups in any order, and what it is."""
    random = np.random.default_rng(len(name))
    levels, order = random.integers(0, 16, (columns, rows)), random.permutation(np.arange(columns) // 32)
    zeros = random.integers(1, 16, (columns // 32, rows))
    scales = random.uniform(0.001, 0.01, zeros.shape).astype(np.float16)
    words = (levels.reshape(-1, 8, rows) << np.arange(0, 32, 4)[:, None]).sum(1)
    points = ((zeros - 1).reshape(len(zeros), -1, 8) << np.arange(0, 32, 4)).sum(2)
    weight = (levels - zeros[order]).astype(np.float32) * scales.astype(np.float32)[order]
    packed = {"qweight": words.astype(np.uint32).view(np.int32), "qzeros": points.astype(np.uint32).view(np.int32)}
    packed |= {"scales": scales, "g_idx": order.astype(np.int32)}
    return {f"{name}.{end}": values for end, values in packed.items()}, np.ascontiguousarray(weight.T)


def written(place: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], recipe: str) -> dict[str, bytes]:
    """The tensors of the file that is made of a checkpoint."""
    if not place.exists():
        place.mkdir()
        shutil.copy(TOKENIZER, place)
        (place / "config.json").write_text(json.dumps(config))
        write_tensors(place, tensors)
    output = place / f"{recipe}.gguf"
    convert(place, recipe, output)
    with open_gguf(output) as file:
        return {name: file.map(tensor).tobytes() for name, tensor in file.tensors.items()}


@pytest.mark.parametrize(
    ("config", "layers", "router", "pack", "settings"),
    [
        (
            QWEN,
            linear(QWEN, "mlp.experts", ("gate_proj", "up_proj", "down_proj")),
            "mlp.gate",
            eight_bits,
            {"quant_method": "fp8", "weight_block_size": list(BLOCK), "modules_to_not_convert": ["mlp.gate"]},
        ),
        (
            MIXTRAL,
            linear(MIXTRAL, "block_sparse_moe.experts", ("w1", "w3", "w2")),
            "block_sparse_moe.gate",
            gptq,
            {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False},
        ),
    ],
    ids=["fp8", "gptq"],
)
def test_quantized_experts_are_those_of_a_plain_checkpoint(
    config: dict[str, Any],
    layers: dict[str, tuple[int, int]],
    router: str,
    pack: Any,
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    others = {name: bf16(normal(*shape)) for name, shape in PLAIN.items()}
    others[f"model.layers.0.{router}.weight"] = bf16(normal(EXPERTS, HIDDEN))
    if config is QWEN:
        others |= {f"model.layers.0.self_attn.{part}_norm.weight": bf16(normal(32)) for part in "qk"}
    quantized, plain = dict(others), dict(others)
    for name, shape in layers.items():
        packed, plain[f"{name}.weight"] = pack(name, *shape)
        quantized |= packed
    for recipe in ("F32", "Q8_0"):
        found = written(tmp_path / "quantized", {**config, "quantization_config": settings}, quantized, recipe)
        assert found == written(tmp_path / "plain", config, plain, recipe)
        assert len(found["blk.0.ffn_down_exps.weight"]) == EXPERTS * HIDDEN * INNER * (4 if recipe == "F32" else 34 / 32)
