"""A GGUF file with the shape of TinyLlama 1.1B and random weights, in any recipe: something of real size to time.

    python tests/bench/random_model.py /tmp/tiny-Q4_K_M.gguf Q4_K_M

Rows repeat, so that making it takes seconds. It has no vocabulary.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from quantcli.conversion.plan import make_plan
from quantcli.conversion.recipes import find_recipe
from quantcli.core.block_types import TYPES
from quantcli.formats.gguf.spec import Metadata, f32, string, u32
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.kernels.rows import quantize
from quantcli.tensors.tensor import TensorInfo

LAYERS, WIDTH, INNER, HEADS, KV_HEADS, VOCABULARY, CONTEXT = 22, 2048, 5632, 32, 4, 32000, 2048
DISTINCT_ROWS = 32


def metadata() -> Metadata:
    """The keys that a llama model needs."""
    return {
        "general.architecture": string("llama"),
        "llama.block_count": u32(LAYERS),
        "llama.context_length": u32(CONTEXT),
        "llama.embedding_length": u32(WIDTH),
        "llama.feed_forward_length": u32(INNER),
        "llama.attention.head_count": u32(HEADS),
        "llama.attention.head_count_kv": u32(KV_HEADS),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.rope.dimension_count": u32(WIDTH // HEADS),
        "llama.vocab_size": u32(VOCABULARY),
        "tokenizer.ggml.model": string("no_vocab"),
    }


def tensors() -> list[TensorInfo]:
    """The tensors of the model, in F32."""
    kv_width = WIDTH // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, WIDTH), "output.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,),
    }  # fmt: skip
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (WIDTH,),
            f"blk.{layer}.attn_q.weight": (WIDTH, WIDTH),
            f"blk.{layer}.attn_k.weight": (kv_width, WIDTH),
            f"blk.{layer}.attn_v.weight": (kv_width, WIDTH),
            f"blk.{layer}.attn_output.weight": (WIDTH, WIDTH),
            f"blk.{layer}.ffn_norm.weight": (WIDTH,),
            f"blk.{layer}.ffn_gate.weight": (INNER, WIDTH),
            f"blk.{layer}.ffn_up.weight": (INNER, WIDTH),
            f"blk.{layer}.ffn_down.weight": (WIDTH, INNER),
        }
    return [TensorInfo(name, shape, TYPES["F32"]) for name, shape in shapes.items()]


def write_random_model(path: Path, recipe: str) -> None:
    """Write the model at `path`, quantized by `recipe`."""
    random = np.random.default_rng(0)
    plan = make_plan(tensors(), metadata(), find_recipe(recipe))
    infos = [TensorInfo(tensor.name, tensor.shape, tensor.type) for tensor in plan]
    with GGUFWriter(path, metadata(), infos, overwrite=True) as writer:
        for index, info in enumerate(infos):
            if info.rows == 1:
                data = quantize(np.ones((1, info.row_length), np.float32), info.type)
            else:
                spread = np.float32(info.row_length**-0.5)
                x = random.standard_normal((DISTINCT_ROWS, info.row_length), np.float32) * spread
                rows = quantize(x, info.type, np.ones(info.row_length, np.float32))
                data = np.resize(rows, (info.rows, info.row_bytes))
            writer.write(index, 0, data)


if __name__ == "__main__":
    write_random_model(Path(sys.argv[1]), sys.argv[2])
