"""Checkpoint to Q4_K_M: quantcli beside llama.cpp's converter and quantizer, in one run on one machine.

    python tests/bench/convert_speed.py --reference LLAMA_CPP [--runs 3] [--threads 2] [--folder DIR]

LLAMA_CPP is llama.cpp's source directory, for its convert_hf_to_gguf.py (needs torch and transformers); its quantizer is
llama-cpp-python's `llama_model_quantize`. The model has the shape of TinyLlama-1.1B with random bfloat16 weights, 2.2 GB; a
second one with twice the layers shows whether memory grows. About 12 GB of disk are needed in DIR.

Every program runs as a process of its own, alternating, once before the clock counts. Memory is the peak of the process's
private memory (RssAnon of Linux), sampled a hundred times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).parents[2] / "examples" / "storyteller"
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
    "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

QUANTIZER = """
import sys, llama_cpp
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype, parameters.nthread = int(sys.argv[3]), int(sys.argv[4])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), parameters))
"""
Q4_K_M = 15
"""`LLAMA_FTYPE_MOSTLY_Q4_K_M`."""


@dataclass(frozen=True)
class Measured:
    """One process: seconds of wall time, seconds of processor time, peak private memory in MiB."""

    wall: float
    cpu: float
    private: float


def make_checkpoint(folder: Path, layers: int) -> Path:
    """Write a checkpoint of random bfloat16 weights with the example's tokenizer; the converter pads the vocabulary."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": layers}))
    shutil.copy(EXAMPLE / "tokenizer.model", folder)
    hidden, inner, keys, vocabulary = 2048, 5632, 256, 32000
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name, rows in (("q", hidden), ("k", keys), ("v", keys), ("o", hidden)):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, hidden)
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            shapes[f"{prefix}.mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(safetensors_header(shapes, "BF16", 2))
        for shape in shapes.values():
            values = 0.02 * random.standard_normal(int(np.prod(shape)), dtype=np.float32)
            (values.view(np.uint32) >> 16).astype(np.uint16).tofile(file)
    return folder


def safetensors_header(shapes: Mapping[str, tuple[int, ...]], dtype: str, width: int) -> bytes:
    """What stands before the data of tensors of one type, of `width` bytes each."""
    header, position = {}, 0
    for name, shape in shapes.items():
        size = width * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def measure(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> Measured:
    """Run a command to its end."""
    before, started = os.times(), time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=log, stderr=log, env={**os.environ, **(environment or {})}
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, private_kib(process.pid))
            time.sleep(0.01)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{command[0]} failed:\n{log.read().decode(errors='replace')[-2000:]}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(time.perf_counter() - started, cpu, peak / 1024)


def private_kib(process: int) -> int:
    """Private memory of a running process."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def show(name: str, runs: Sequence[Measured]) -> float:
    """Print a row of medians and the spread of wall time; returns the median wall time."""
    wall = [run.wall for run in runs]
    middle = statistics.median(wall)
    cpu, private = statistics.median(run.cpu for run in runs), max(run.private for run in runs)
    print(f"| {name} | {middle:.1f} | {min(wall):.1f} to {max(wall):.1f} | {cpu:.1f} | {private:.0f} |", flush=True)
    return middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    threads = str(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model = make_checkpoint(folder / "tinyllama-shape", 22)
        middle, theirs, ours = folder / "bf16.gguf", folder / "theirs.gguf", folder / "ours.gguf"
        convert = [
            sys.executable, options.reference / "convert_hf_to_gguf.py", model, "--outfile", middle, "--outtype", "bf16",
        ]  # fmt: skip
        gguf = {"PYTHONPATH": str(options.reference / "gguf-py"), "OMP_NUM_THREADS": threads}
        quantize = [sys.executable, "-c", QUANTIZER, middle, theirs, str(Q4_K_M), threads]

        def own(model: Path) -> list[str | Path]:
            one = [sys.executable, "-m", "quantcli", model, "--type", "Q4_K_M", "-o", ours]
            return [*one, "--overwrite", "--threads", threads]

        measure(own(model))
        runs: dict[str, list[Measured]] = {"converter": [], "quantizer": [], "quantcli": []}
        for _ in range(options.runs):
            runs["converter"].append(measure(convert, gguf))
            runs["quantizer"].append(measure(quantize))
            runs["quantcli"].append(measure(own(model)))
        print("| program | wall s, median | range | processor s | private MiB, peak |")
        print("| --- | ---: | ---: | ---: | ---: |")
        reference = show("convert_hf_to_gguf.py", runs["converter"]) + show("llama_model_quantize", runs["quantizer"])
        mine = show("quantcli", runs["quantcli"])
        for path in (middle, theirs, model / "model.safetensors"):
            path.unlink()
        double = make_checkpoint(folder / "twice", 44)
        show("quantcli, twice the layers", [measure(own(double))])
        print(f"\nllama.cpp takes {reference / mine:.1f} times as long ({reference:.1f} s against {mine:.1f} s).")


if __name__ == "__main__":
    main()
