"""What converting quantized checkpoints takes: seconds and private memory, for every kind of storage.

    python tests/bench/prequantized_memory.py [--layers 2] [--threads 2] [--folder DIR] [METHOD ...]

The models have layers of the shape of Llama-3-8B (218 million weights each; for `mxfp4` of GPT-OSS 20B, 0.6 thousand
million) and random numbers. Each is converted to Q4_K_M (`mxfp4`: MXFP4_MOE) and to Q4_0; then again with twice the layers.
Memory is the peak of RssAnon, as in `convert_speed.py`. About 5 GB of disk are needed in DIR.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from convert_speed import EXAMPLE, SHAPE, measure

HIDDEN, INNER, KEYS, VOCABULARY = 4096, 14336, 1024, 32000
EXPERTS, WIDTH = 32, 2880
GROUP = 128
PIECE = 1 << 22

Stored = dict[str, tuple[str, tuple[int, ...]]]
"""The tensors that stand for a weight: by the ends of their names, type and shape."""


def gptq(outputs: int, inputs: int) -> Stored:
    groups = inputs // GROUP
    return {
        ".qweight": ("I32", (inputs // 8, outputs)), ".qzeros": ("I32", (groups, outputs // 8)),
        ".scales": ("F16", (groups, outputs)), ".g_idx": ("I32", (inputs,)),
    }  # fmt: skip


def awq(outputs: int, inputs: int) -> Stored:
    groups = inputs // GROUP
    return {
        ".qweight": ("I32", (inputs, outputs // 8)), ".qzeros": ("I32", (groups, outputs // 8)),
        ".scales": ("F16", (groups, outputs)),
    }  # fmt: skip


def bitsandbytes(outputs: int, inputs: int) -> Stored:
    size = outputs * inputs
    return {
        ".weight": ("U8", (size // 2, 1)), ".weight.absmax": ("F32", (size // 64,)), ".weight.quant_map": ("F32", (16,)),
        ".weight.quant_state.bitsandbytes__nf4": ("U8", (outputs, inputs)),
    }  # fmt: skip


def packed(outputs: int, inputs: int) -> Stored:
    return {
        ".weight_packed": ("I32", (outputs, inputs // 8)), ".weight_scale": ("F16", (outputs, inputs // GROUP)),
        ".weight_shape": ("I64", (outputs, inputs)),
    }  # fmt: skip


def fp8(outputs: int, inputs: int) -> Stored:
    return {".weight": ("F8_E4M3", (outputs, inputs)), ".weight_scale_inv": ("F32", (outputs // 128, inputs // 128))}


METHODS: dict[str, tuple[Callable[[int, int], Stored], dict[str, Any]]] = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "desc_act": True}),
    "awq": (awq, {"quant_method": "awq", "bits": 4}),
    "bitsandbytes": (bitsandbytes, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "compressed-tensors": (packed, {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
}


def llama(method: str, layers: int) -> tuple[dict[str, Any], Stored]:
    stored, settings = METHODS[method]
    tensors: Stored = {f"{name}.weight": ("F16", (VOCABULARY, HIDDEN)) for name in ("model.embed_tokens", "lm_head")}
    tensors["model.norm.weight"] = ("F16", (HIDDEN,))
    for layer in range(layers):
        place = f"model.layers.{layer}."
        heights = {"q": HIDDEN, "k": KEYS, "v": KEYS, "o": HIDDEN}
        linear = {f"self_attn.{part}_proj": (height, HIDDEN) for part, height in heights.items()}
        linear |= {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}
        for name, shape in linear.items():
            tensors |= {place + name + end: kind for end, kind in stored(*shape).items()}
        tensors |= {f"{place}{name}.weight": ("F16", (HIDDEN,)) for name in ("input_layernorm", "post_attention_layernorm")}
    config = {
        **SHAPE, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_key_value_heads": 8, "num_hidden_layers": layers,
        "quantization_config": settings,
    }  # fmt: skip
    return config, tensors


def gpt_oss(layers: int) -> tuple[dict[str, Any], Stored]:
    tensors: Stored = {f"{name}.weight": ("F16", (VOCABULARY, WIDTH)) for name in ("model.embed_tokens", "lm_head")}
    tensors["model.norm.weight"] = ("F16", (WIDTH,))
    for layer in range(layers):
        place = f"model.layers.{layer}."
        for part, rows, columns in (("q", 4096, WIDTH), ("k", 512, WIDTH), ("v", 512, WIDTH), ("o", WIDTH, 4096)):
            tensors[f"{place}self_attn.{part}_proj.weight"] = ("F16", (rows, columns))
            tensors[f"{place}self_attn.{part}_proj.bias"] = ("F16", (rows,))
        tensors[f"{place}self_attn.sinks"] = ("F16", (64,))
        tensors |= {f"{place}{name}.weight": ("F16", (WIDTH,)) for name in ("input_layernorm", "post_attention_layernorm")}
        tensors |= {f"{place}mlp.router.weight": ("F16", (EXPERTS, WIDTH)), f"{place}mlp.router.bias": ("F16", (EXPERTS,))}
        for part, rows in (("gate_up", 2 * WIDTH), ("down", WIDTH)):
            name = f"{place}mlp.experts.{part}_proj"
            tensors[f"{name}_blocks"] = ("U8", (EXPERTS, rows, WIDTH // 32, 16))
            tensors[f"{name}_scales"] = ("U8", (EXPERTS, rows, WIDTH // 32))
            tensors[f"{name}_bias"] = ("F16", (EXPERTS, rows))
    config = {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": WIDTH, "intermediate_size": WIDTH,
        "num_hidden_layers": layers, "num_local_experts": EXPERTS, "num_experts_per_tok": 4, "vocab_size": VOCABULARY,
        "quantization_config": {"quant_method": "mxfp4"},
    }  # fmt: skip
    return config, tensors


ITEM = {"I64": 8, "I32": 4, "F32": 4, "F16": 2, "U8": 1, "F8_E4M3": 1}


def contents(name: str, kind: str, shape: tuple[int, ...], random: np.random.Generator) -> Iterator[bytes]:
    """A tensor's bytes, in pieces: small positive scales, exponents near one, bits of any kind."""
    if name.endswith("bitsandbytes__nf4"):
        yield json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": list(shape), "dtype": "float16"}).encode()
        return
    if name.endswith("weight_shape"):
        yield np.array(shape, "<i8").tobytes()
        return
    size = int(np.prod(shape))
    if name.endswith("g_idx"):
        yield random.permutation(np.arange(size, dtype="<i4") // GROUP).tobytes()
        return
    for start in range(0, size, PIECE):
        count = min(PIECE, size - start)
        if kind in ("F16", "F32"):
            yield (0.01 * random.random(count, np.float32) + np.float32(0.001)).astype(f"<f{ITEM[kind]}").tobytes()
        elif name.endswith("_scales"):
            yield random.integers(115, 122, count, np.uint8).tobytes()
        elif kind == "F8_E4M3":
            yield (random.integers(0, 256, count, np.uint8) & 0xF7).tobytes()  # none of the NaN
        else:
            yield random.bytes(count * ITEM[kind])


def make_checkpoint(folder: Path, config: dict[str, Any], tensors: Stored) -> Path:
    """Write a checkpoint, with the example's tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(EXAMPLE / "tokenizer.model", folder)
    random = np.random.default_rng(0)
    header: dict[str, Any] = {}
    position = 0
    with (folder / "data").open("wb") as file:
        for name, (kind, shape) in tensors.items():
            start = position
            for piece in contents(name, kind, shape, random):
                position += file.write(piece)
            told = [position - start] if name.endswith("nf4") else [len(shape)] if name.endswith("shape") else list(shape)
            header[name] = {"dtype": kind, "shape": told, "data_offsets": [start, position]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file, (folder / "data").open("rb") as data:
        file.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(data, file)
    (folder / "data").unlink()
    return folder


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join([*METHODS, 'mxfp4'])}; default: all")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    print("| method | layers | checkpoint, MiB | type | wall s | processor s | private MiB, peak |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: |")
    for method in options.methods or [*METHODS, "mxfp4"]:
        for layers in (options.layers, 2 * options.layers):
            with tempfile.TemporaryDirectory(dir=options.folder) as name:
                config, tensors = gpt_oss(layers) if method == "mxfp4" else llama(method, layers)
                model = make_checkpoint(Path(name) / "model", config, tensors)
                size = (model / "model.safetensors").stat().st_size >> 20
                for recipe in ("MXFP4_MOE" if method == "mxfp4" else "Q4_K_M", "Q4_0"):
                    command = [sys.executable, "-m", "quantcli", model, "--type", recipe, "-o", Path(name) / "out.gguf"]
                    run = measure([*command, "--overwrite", "--threads", str(options.threads)])
                    print(
                        f"| {method} | {layers} | {size} | {recipe} | {run.wall:.1f} | {run.cpu:.1f} | {run.private:.0f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
