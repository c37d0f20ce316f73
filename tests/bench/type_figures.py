"""The figures with which `quantize types` helps to choose: writes quantcli/cli/type_figures.json.

    python tests/bench/type_figures.py --model gemma-F32.gguf --text wiki.test.raw --example-text tinystories-valid.txt

For each recipe that `types` advises on: the bits per weight and bytes of a model with the shapes of Llama 3.1 8B (exact,
from the plan), and the mean KL divergence from the unquantized model of the example and of MODEL, an unquantized GGUF file,
both with an importance matrix from the built-in calibration text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import random_model

from quantcli.cli.commands.types import ADVICE
from quantcli.conversion.plan import make_plan
from quantcli.conversion.recipes import find_recipe
from quantcli.formats.gguf.writer import make_layout
from quantcli.tensors.tensor import TensorInfo

HERE = Path(__file__).parents[2]
EIGHT_BILLION = {
    "LAYERS": 32, "WIDTH": 4096, "INNER": 14336, "HEADS": 32, "KV_HEADS": 8, "VOCABULARY": 128256, "CONTEXT": 131072,
}  # fmt: skip


def sizes() -> dict[str, dict[str, float]]:
    """Bits per weight and bytes for the shapes of Llama 3.1 8B."""
    for name, value in EIGHT_BILLION.items():
        setattr(random_model, name, value)
    infos, metadata, found = random_model.tensors(), random_model.metadata(), {}
    weights = sum(info.size for info in infos)
    for name in ADVICE:
        plan = make_plan(infos, metadata, find_recipe(name))
        planned = [TensorInfo(tensor.name, tensor.shape, tensor.type) for tensor in plan]
        data = sum(info.nbytes for info in planned)
        found[name] = {"bits": round(8 * data / weights, 2), "bytes": make_layout(metadata, planned).file_bytes}
    return found


def quantize(*words: object) -> str:
    command = [sys.executable, "-m", "quantcli", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def divergences(model: Path, text: Path, *options: object) -> dict[str, float]:
    """Recipe -> mean KL divergence in nats per token."""
    with tempfile.TemporaryDirectory() as folder:
        pattern = Path(folder) / "{type}.gguf"
        quantize(model, "--type", ",".join(ADVICE), "--imatrix", "auto", "-o", pattern)
        files = [Path(str(pattern).replace("{type}", name)) for name in ADVICE]
        found: Any = json.loads(quantize("eval", *files, "--base", model, "--text", text, *options, "--json"))
    return {name: row["kl_divergence"]["mean"] for name, row in zip(ADVICE, found["results"], strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--example-text", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=8)
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = sizes()
    with tempfile.TemporaryDirectory() as folder:
        example = Path(folder) / "example.gguf"
        quantize(HERE / "examples" / "storyteller", "--type", "F32", "-o", example)
        small = divergences(example, options.example_text, "--ctx", 256, "--chunks", 4 * options.chunks)
    large = divergences(options.model, options.text, "--ctx", 512, "--chunks", options.chunks)
    for name, figure in figures.items():
        figure |= {"example": round(small[name], 4), "model": round(large[name], 4)}
    path = HERE / "quantcli" / "cli" / "type_figures.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
