"""The table of docs/quality.md: the divergence of files rounded as llama.cpp does with an importance matrix, and with
`--quality good` and `best`, from the same calibration text, at the same size.

    python tests/bench/quality_table.py MODEL... --text NAME=FILE... [--type T,T...] [--chunks N] [--calibration F...]

MODEL is an unquantized GGUF file. Prints a Markdown table for each model, and ends with status 1 if a file is worse than
the reference's on any text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TYPES = "Q2_K,Q3_K_M,IQ4_XS,Q4_0,Q4_K_M,Q5_K_M,Q6_K,Q8_0"
QUALITIES = ("good", "best")


def quantize(*words: object) -> str:
    command = [sys.executable, "-m", "quantcli", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def made(model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """The files of each way of rounding: a pattern of names with {type}."""
    texts = [word for text in options.calibration for word in ("--calibration", text)]
    tokens = ("--tokens", options.tokens)
    chunks = options.tokens // 512
    collected = [word for text in options.calibration or ["auto"] for word in ("--text", text)]
    quantize("imatrix", model, *collected, "--chunks", chunks, "-o", folder / "imatrix.gguf")
    patterns = {name: folder / f"{name}-{{type}}.gguf" for name in ("reference", *QUALITIES)}
    quantize(model, "--type", options.type, "--imatrix", folder / "imatrix.gguf", "-o", patterns["reference"])
    for name in QUALITIES:
        moments = ("--moments", folder / "moments")
        quantize(model, "--type", options.type, "--quality", name, *texts, *tokens, *moments, "-o", patterns[name])
    return patterns


def divergences(files: Sequence[Path], base: Path, text: Path, options: argparse.Namespace) -> dict[Path, Any]:
    words = ("--base", base, "--text", text, "--ctx", options.ctx, "--chunks", options.chunks, "--json")
    document = json.loads(quantize("eval", *files, *words))
    return {Path(entry["path"]): entry for entry in document["results"]}


def cell(name: str, entry: Any, stock: Any) -> str:
    kl, before = entry["kl_divergence"], stock["kl_divergence"]
    if name == "reference":
        return f"{kl['mean']:.4f}"
    return f"{kl['mean']:.4f} ({kl['mean'] / before['mean'] - 1:+.0%})"


def show(model: Path, options: argparse.Namespace) -> bool:
    """Print the table of a model. Whether no file is worse than the reference's."""
    fine, types = True, options.type.split(",")
    with tempfile.TemporaryDirectory() as place:
        patterns = made(model, Path(place), options)
        print(f"\n{model.stem}\n\n| text | type | reference, imatrix | good | best | 99.9 %, reference | 99.9 %, best |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
        for named in options.text:
            label, _, text = named.partition("=")
            files = [Path(str(pattern).replace("{type}", kind)) for kind in types for pattern in patterns.values()]
            found = divergences(files, model, Path(text), options)
            for number, kind in enumerate(types):
                of_kind = files[number * len(patterns) : (number + 1) * len(patterns)]
                entries = dict(zip(patterns, (found[file] for file in of_kind), strict=True))
                cells = [cell(name, entry, entries["reference"]) for name, entry in entries.items()]
                tails = [f"{entries[name]['kl_divergence']['p999']:.3f}" for name in ("reference", "best")]
                print("|", " | ".join([label, kind, *cells, *tails]), "|", flush=True)
                means = [entries[name]["kl_divergence"]["mean"] for name in patterns]
                fine &= max(means[1:]) <= means[0]
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--type", default=TYPES)
    parser.add_argument("--calibration", action="append", default=[])
    parser.add_argument("--tokens", type=int, default=51200)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=8)
    options = parser.parse_args()
    fine = [show(model, options) for model in options.models]
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    main()
