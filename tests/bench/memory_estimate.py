"""The memory that `quantize estimate` predicts, against the peak of running: a full context, and one more token.

    python tests/bench/memory_estimate.py [NAME ...]

Models have random weights: TinyLlama's shape by `random_model.py`, and others by transformers, some 100 MB each. Each runs
in a process of its own, after one that fills the kernel cache. Prints a line per model; the estimate must be within 5
percent or 100 MiB of the peak.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from random_model import write_random_model  # noqa: E402
from tiny_model import write_converted  # noqa: E402
from transformers_model import random_model  # noqa: E402

from quantcli.formats.checkpoint.checkpoint import open_checkpoint  # noqa: E402
from quantcli.quality.estimate import estimate  # noqa: E402

BIG: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16,
    "num_key_value_heads": 4, "max_position_embeddings": 8192,
}  # fmt: skip
EXPERTS = {**BIG, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 704}
MLA = {
    **BIG, "num_key_value_heads": 16, "q_lora_rank": 384, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32, "v_head_dim": 64, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 704, "first_k_dense_replace": 1, "head_dim": 32,
}  # fmt: skip
HYBRID = {
    **BIG, "layer_types": ["mamba", "mamba", "mamba", "attention"] * 2, "num_local_experts": 0, "num_experts_per_tok": 0,
    "shared_intermediate_size": 2816, "mamba_n_heads": 32, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 64,
    "position_embedding_type": "nope",
}  # fmt: skip
GPT = {"n_embd": 1024, "n_layer": 8, "n_head": 16, "n_positions": 4096}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", BIG),
    "qwen2": ("qwen2", BIG),
    "qwen3": ("qwen3", {**BIG, "head_dim": 128}),
    "qwen2moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 1408}),
    "qwen3moe": ("qwen3_moe", {**EXPERTS, "head_dim": 64}),
    "mixtral": ("mixtral", {**BIG, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("olmoe", {**EXPERTS, "intermediate_size": 704}),
    "deepseek2": ("deepseek_v2", {**MLA, "q_lora_rank": None}),
    "deepseek3": ("deepseek_v3", {**MLA, "n_group": 1, "topk_group": 1}),
    "gemma2": ("gemma2", {**BIG, "head_dim": 128, "sliding_window": 512}),
    "gemma3": ("gemma3_text", {**BIG, "head_dim": 128, "sliding_window": 512}),
    "gpt-oss": ("gpt_oss", {**BIG, "head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2,
                            "sliding_window": 128}),
    "lfm2": ("lfm2", {**BIG, "layer_types": ["conv", "conv", "full_attention", "conv"] * 2}),
    "granitehybrid": ("granitemoehybrid", HYBRID),
    "mamba2": ("mamba2", {"hidden_size": 1024, "num_hidden_layers": 8, "num_heads": 32, "head_dim": 64, "n_groups": 1,
                          "state_size": 64}),
    "gpt2": ("gpt2", GPT),
    "falcon": ("falcon", {"hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16}),
    "phi3": ("phi3", BIG),
}  # fmt: skip
RANDOM = {"tinyllama-Q4_K_M": "Q4_K_M", "tinyllama-Q8_0": "Q8_0", "tinyllama-F16": "F16"}
TYPES = {"f16": 2048, "q8_0": 2048}
"""Cache type -> context."""

RUN = """
import resource, sys
from quantcli.runner.cache import Cache
from quantcli.runner.load import load_model
path, context, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
model = load_model(path).model
cache = Cache(model.sizes, context, kind)
model.forward([index % 100 for index in range(context - 1)], cache)
model.forward([7], cache)
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""


def peak(path: Path, context: int, kind: str) -> int:
    """The peak of resident memory in bytes."""
    command = [sys.executable, "-c", RUN, str(path), str(context), kind]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fills the kernel cache
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return 1024 * int(done.stdout)


def made(name: str, place: Path) -> Path:
    """The GGUF file of a model."""
    target = place / f"{name}.gguf"
    if name in RANDOM:
        write_random_model(target, RANDOM[name])
        return target
    random_model(place / "model", *MODELS[name])
    with open_checkpoint(place / "model") as checkpoint:
        write_converted(checkpoint, target)
    return target


def main() -> None:
    """See the module's description."""
    for name in sys.argv[1:] or (*RANDOM, *MODELS):
        with tempfile.TemporaryDirectory() as place:
            path = made(name, Path(place))
            for kind, context in TYPES.items():
                said = estimate(path, contexts=(context,), cache_type=kind).rows[0].memory[0]
                used = peak(path, context, kind)
                off = said - used
                good = abs(off) <= max(0.05 * used, 100 << 20)
                print(
                    f"{name:18} {kind:5} estimated {said / 2**20:7.1f} MiB, used {used / 2**20:7.1f} MiB,"
                    f" {off / 2**20:+7.1f} MiB {'' if good else 'WRONG'}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
