"""A checkpoint with experts to Q4_K_M: seconds and peak private memory, for every way in which checkpoints hold experts.

    python tests/bench/moe_memory.py [--threads 2] [--folder DIR] [LAYOUT ...]

Each checkpoint has 64 experts in 7 layers, 1.1 billion bfloat16 weights in all, 2.2 GB in shards of half a gigabyte;
about 4 GB of disk are needed in DIR. Layouts: `apart`, each expert's projections in tensors of their own (Qwen 3 MoE);
`fused`, gate and up of all experts in one tensor (as transformers 5 has them); `transposed`, the same stored input
first (Llama 4); `interleaved`, that with the rows of gate and up in turns (GPT-OSS). The numbers repeat. Memory is
measured as in `convert_speed.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from convert_speed import EXAMPLE, measure

LAYERS, HIDDEN, INNER, EXPERTS, HEADS, VOCABULARY = 7, 1024, 768, 64, 8, 32000
SHARD_BYTES = 1 << 29
REPEATED = 1 << 22
"""After so many weights the numbers repeat."""

COMMON = {
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "head_dim": HIDDEN // HEADS, "tie_word_embeddings": True, "num_experts_per_tok": 2,
}  # fmt: skip

QWEN: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": EXPERTS,
    "moe_intermediate_size": INNER, "intermediate_size": INNER, "rope_scaling": None,
}  # fmt: skip
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "apart": QWEN,
    "fused": QWEN,
    "transposed": {
        "architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", "num_local_experts": EXPERTS,
        "intermediate_size": INNER, "intermediate_size_mlp": INNER, "interleave_moe_layer_step": 1,
    },
    "interleaved": {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": EXPERTS,
        "intermediate_size": INNER, "sliding_window": 128, "attention_bias": False,
    },
}  # fmt: skip

Shapes = dict[str, tuple[int, ...]]


def layer_shapes(layout: str) -> Shapes:
    """The tensors of a layer, by what follows `model.layers.N.`."""
    shapes: Shapes = {f"self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
    shapes |= {f"{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    if layout in ("apart", "fused"):
        shapes |= {f"self_attn.{part}_norm.weight": (HIDDEN // HEADS,) for part in "qk"}
        shapes["mlp.gate.weight"] = (EXPERTS, HIDDEN)
    if layout == "apart":
        for expert in range(EXPERTS):
            for part, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
                shapes[f"mlp.experts.{expert}.{part}_proj.weight"] = shape
    elif layout == "fused":
        shapes["mlp.experts.gate_up_proj"] = (EXPERTS, 2 * INNER, HIDDEN)
        shapes["mlp.experts.down_proj"] = (EXPERTS, HIDDEN, INNER)
    else:
        place = "feed_forward" if layout == "transposed" else "mlp"
        shapes[f"{place}.router.weight"] = (EXPERTS, HIDDEN)
        shapes[f"{place}.experts.gate_up_proj"] = (EXPERTS, HIDDEN, 2 * INNER)
        shapes[f"{place}.experts.down_proj"] = (EXPERTS, INNER, HIDDEN)
    if layout == "transposed":
        shared = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
        shapes |= {f"feed_forward.shared_expert.{part}_proj.weight": shape for part, shape in shared.items()}
    if layout == "interleaved":
        shapes |= {"self_attn.sinks": (HEADS,), "mlp.router.bias": (EXPERTS,)}
        shapes |= {"mlp.experts.gate_up_proj_bias": (EXPERTS, 2 * INNER), "mlp.experts.down_proj_bias": (EXPERTS, HIDDEN)}
    return shapes


def make_checkpoint(folder: Path, layout: str) -> Path:
    """Write a checkpoint in shards, with the example's tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**COMMON, **CONFIGURATIONS[layout]}))
    shutil.copy(EXAMPLE / "tokenizer.model", folder)
    shapes: Shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in layer_shapes(layout).items()}
    shards: list[Shapes] = [{}]
    for name, shape in shapes.items():
        if sum(map(math.prod, shards[-1].values())) * 2 > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    values = 0.02 * np.random.default_rng(0).standard_normal(REPEATED, np.float32)
    numbers = (values.view(np.uint32) >> 16).astype(np.uint16)
    places = {}
    for index, shard in enumerate(shards, start=1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / file, shard, numbers)
        places |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def write_shard(path: Path, shapes: Shapes, numbers: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
    """Write the tensors, all filled with the numbers over and over."""
    header, position = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + 2 * math.prod(shape)]}
        position += 2 * math.prod(shape)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = position // 2
        while left:
            numbers[:left].tofile(file)
            left -= min(left, len(numbers))


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layouts", nargs="*", default=list(CONFIGURATIONS))
    parser.add_argument("--threads", default="2")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    print("| experts | source GB | wall s | processor s | private MiB, peak |\n| --- | ---: | ---: | ---: | ---: |")
    for layout in options.layouts:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            model = make_checkpoint(Path(name) / layout, layout)
            size = sum(path.stat().st_size for path in model.iterdir())
            command = [sys.executable, "-m", "quantcli", model, "--type", "Q4_K_M", "--threads", options.threads]
            took = measure([*command, "-o", Path(name) / "out.gguf"])
            print(f"| {layout} | {size / 1e9:.2f} | {took.wall:.1f} | {took.cpu:.1f} | {took.private:.0f} |", flush=True)


if __name__ == "__main__":
    main()
