"""What does `--quality best` cost? Beside llama-imatrix and llama-quantize on the same calibration tokens.

    python tests/bench/quality_cost.py VOCABULARY --text F [--llama-imatrix PROGRAM --llama-quantize PROGRAM]
                                       [--tokens 16384] [--threads 2] [--runs 1] [--layers 22] [--type Q4_K_M]
                                       [--gradients none]

The model has the shape of TinyLlama 1.1B and random weights in F16. Its tokenizer is that of the GGUF file VOCABULARY, of
32,000 tokens. Whole processes by wall time, in turns; medians. Memory is the peak of the process's private memory. Then the
stages of one conversion, timed inside. `--layers` shows how time and memory grow.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from eval_speed import timed
from random_model import LAYERS, metadata, tensors

from quantcli.core.block_types import TYPES
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import u32
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.tensors.tensor import TensorInfo

ROWS = 512
"""Rows that are made at once."""


def write_model(path: Path, vocabulary: Path, layers: int) -> None:
    """The model, every weight random."""
    with open_gguf(vocabulary) as file:
        tokenizer = {key: entry for key, entry in file.metadata.items() if key.startswith("tokenizer.")}
    left_out = tuple(f"blk.{layer}." for layer in range(layers, LAYERS))
    kept = [tensor for tensor in tensors() if not tensor.name.startswith(left_out)]
    infos = [TensorInfo(tensor.name, tensor.shape, TYPES["F16" if tensor.rows > 1 else "F32"]) for tensor in kept]
    random = np.random.default_rng(0)
    keys = {**metadata(), **tokenizer, "llama.block_count": u32(layers)}
    with GGUFWriter(path, keys, infos, overwrite=True) as writer:
        for index, info in enumerate(infos):
            for row in range(0, info.rows, ROWS):
                count = min(ROWS, info.rows - row)
                x = random.standard_normal((count, info.row_length), np.float32) * np.float32(info.row_length**-0.5)
                data = np.ones((1, info.row_length), np.float32) if info.rows == 1 else x.astype(np.float16)
                writer.write(index, row * info.row_bytes, data.view(np.uint8).reshape(-1))


def compare(model: Path, folder: Path, options: argparse.Namespace) -> None:
    """Time both ways in turns."""
    imatrix, threads = folder / "imatrix.gguf", str(options.threads)
    collect: list[object] = [
        options.llama_imatrix, "-m", model, "-f", options.text, "-c", "512", "--chunks", options.tokens // 512,
        "-t", threads, "-o", imatrix,
    ]  # fmt: skip
    quantize: list[object] = [
        options.llama_quantize, "--imatrix", imatrix, model, folder / "theirs.gguf", options.type, threads,
    ]  # fmt: skip
    ours: list[object] = [
        sys.executable, "-m", "quantcli", model, "--type", options.type, "--quality", options.quality, "--calibration",
        options.text, "--threads", threads, "-o", folder / "ours.gguf", "--overwrite", "--gradients", options.gradients,
        "--tokens",
    ]  # fmt: skip
    run([*ours, 1024])  # compiles the kernels
    theirs = [collect, quantize] if options.llama_imatrix else []
    turns = [([run(command) for command in theirs], run([*ours, options.tokens])) for _ in range(options.runs)]
    seconds, memory = median(own[0] for _, own in turns), max(own[1] for _, own in turns)
    print("| | llama-imatrix s | llama-quantize s | quantcli s | ratio | quantcli, private MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    steps = [f"{median(other[step][0] for other, _ in turns):.0f}" for step in range(len(theirs))] or ["", ""]
    ratio = f"{median(own[0] / sum(step[0] for step in other) for other, own in turns):.2f}" if theirs else ""
    what = f"{options.type} {options.quality}, {options.layers} layers"
    print(f"| {what} | {' | '.join(steps)} | {seconds:.0f} | {ratio} | {memory:.0f} |", flush=True)


def run(command: Sequence[object]) -> tuple[float, float]:
    """Seconds and peak private MiB of a process."""
    return timed([str(word) for word in command])[:2]


def stages(model: Path, folder: Path, options: argparse.Namespace) -> None:
    """Time the stages of a conversion."""
    from quantcli.conversion import convert as converting
    from quantcli.conversion.plan import PlanOptions
    from quantcli.quality import calibrate, moment_run, moments

    spent: Counter[str] = Counter()

    def timing(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **more: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **more)
            finally:
                spent[name] += time.perf_counter() - start

        return call

    moments.add_upper_products = timing("second moments", moments.add_upper_products)
    moments.factorize = timing("factorizations", moments.factorize)
    calibrate.collect_gradients = timing("gradients", calibrate.collect_gradients)
    calibrate.held_out_loss = timing("comparing on held-out text", calibrate.held_out_loss)
    converting.execute = timing("rounding and writing", converting.execute)
    layer = timing("forward pass, with second moments", moment_run.MomentRun._run_layer)
    moment_run.MomentRun._run_layer = layer  # type: ignore[method-assign, assignment]
    how = calibrate.Calibration(
        texts=[("text", options.text.read_text(encoding="utf-8"))], tokens=options.tokens, quality=options.quality,
        threads=options.threads, device=options.gradients,
    )  # fmt: skip
    start = time.perf_counter()
    converting.convert(
        model, options.type, folder / "stages.gguf", options=PlanOptions(calibrated=True), threads=options.threads,
        stages=partial(calibrate.calibrated_stages, how), overwrite=True,
    )  # fmt: skip
    whole = time.perf_counter() - start
    print(f"\n| stage | s | of {whole:.0f} s |\n| --- | ---: | ---: |")
    for name, seconds in spent.most_common():
        print(f"| {name} | {seconds:.1f} | {seconds / whole:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--llama-imatrix", type=Path)
    parser.add_argument("--llama-quantize", type=Path)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--quality", default="best")
    parser.add_argument("--gradients", default="none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, model = Path(place), Path(place) / "model.gguf"
        write_model(model, options.vocabulary, options.layers)
        compare(model, folder, options)
        stages(model, folder, options)


if __name__ == "__main__":
    main()
