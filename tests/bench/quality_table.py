"""The table of docs/quality.md: the divergence of files rounded as llama.cpp does with an importance matrix, and with
`--quality good` and `best`, from the same calibration text, at the same size.

    python tests/bench/quality_table.py MODEL... --text NAME=FILE... [--type T,T...] [--chunks N] [--calibration F...]
        [--points FILE]

MODEL is an unquantized GGUF file. Prints a Markdown table for each model, and ends with status 1 if a file is worse than
the reference's on any text. With `--points` also files without an importance matrix and files whose types are chosen for
the size of the reference's are made, and sizes and divergences on the first text are written as JSON: what
quality_plot.py draws.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TYPES = "Q2_K,Q3_K_M,IQ4_XS,Q4_0,Q4_K_M,Q5_K_M,Q6_K,Q8_0"
REFERENCE, PLAIN, FREE = "reference", "plain", "types free"
QUALITIES = ("good", "best")
COLUMNS = (REFERENCE, *QUALITIES)

Files = dict[tuple[str, str], Path]
"""By way of rounding and type."""


def quantize(*words: object) -> str:
    command = [sys.executable, "-m", "quantcli", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def made(model: Path, folder: Path, options: argparse.Namespace) -> Files:
    """The files of each way of rounding."""
    imatrix, kinds = folder / "imatrix.gguf", options.type.split(",")
    texts = [word for text in options.calibration for word in ("--calibration", text)]
    calibrated = (*texts, "--tokens", options.tokens, "--moments", folder / "moments")
    collected = [word for text in options.calibration or ["auto"] for word in ("--text", text)]
    quantize("imatrix", model, *collected, "--chunks", options.tokens // 512, "-o", imatrix)
    ways: dict[str, Sequence[object]] = {REFERENCE: ("--imatrix", imatrix)}
    ways |= {name: ("--quality", name, *calibrated) for name in QUALITIES}
    if options.points:
        ways[PLAIN] = ()
    for name, words in ways.items():
        quantize(model, "--type", options.type, *words, "-o", folder / f"{name}-{{type}}.gguf")
    files = {(name, kind): folder / f"{name}-{kind}.gguf" for name in ways for kind in kinds}
    for kind in kinds if options.points else ():
        size = files[REFERENCE, kind].stat().st_size
        files[FREE, kind] = folder / f"free-{kind}.gguf"
        quantize(model, "--target-size", size, "--quality", "best", *calibrated, "-o", files[FREE, kind])
    return files


def divergences(files: Files, base: Path, text: Path, options: argparse.Namespace) -> dict[tuple[str, str], Any]:
    """The divergence of each file on a text: the results of `eval --json`."""
    words = ("--base", base, "--text", text, "--ctx", options.ctx, "--chunks", options.chunks, "--json")
    results = json.loads(quantize("eval", *files.values(), *words))["results"]
    return {key: entry["kl_divergence"] for key, entry in zip(files, results, strict=True)}


def cell(found: Any, before: Any) -> str:
    change = "" if found is before else f" ({found['mean'] / before['mean'] - 1:+.0%})"
    return f"{found['mean']:.4f}{change}"


def show(model: Path, options: argparse.Namespace) -> bool:
    """Print the table of a model. Whether no file is worse than the reference's."""
    fine, kinds = True, options.type.split(",")
    with tempfile.TemporaryDirectory() as place:
        files = made(model, Path(place), options)
        columns = [*COLUMNS, FREE] if options.points else list(COLUMNS)
        print(f"\n{model.stem}\n\n| text | type |", " | ".join(columns), "| 99.9 %, reference | 99.9 %, best |")
        print("| --- | --- |", " | ".join(["---:"] * (len(columns) + 2)), "|")
        for number, named in enumerate(options.text):
            label, _, text = named.partition("=")
            found = divergences(files, model, Path(text), options)
            for kind in kinds:
                cells = [cell(found[name, kind], found[REFERENCE, kind]) for name in columns]
                tails = [f"{found[name, kind]['p999']:.3f}" for name in (REFERENCE, "best")]
                print("|", " | ".join([label, kind, *cells, *tails]), "|", flush=True)
                fine &= all(found[name, kind]["mean"] <= found[REFERENCE, kind]["mean"] for name in QUALITIES)
            if options.points and not number:
                write_points(options.points, f"{model.stem}, {label}", files, found)
    return fine


def write_points(path: Path, what: str, files: Files, found: Mapping[tuple[str, str], Any]) -> None:
    """What quality_plot.py draws."""
    points = [
        {"way": name, "type": kind, "bytes": files[name, kind].stat().st_size, "divergence": found[name, kind]["mean"]}
        for name, kind in files
        if name != "good"
    ]
    path.write_text(json.dumps({"measured": what, "points": points}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--type", default=TYPES)
    parser.add_argument("--calibration", action="append", default=[])
    parser.add_argument("--tokens", type=int, default=51200)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--points", type=Path)
    options = parser.parse_args()
    fine = [show(model, options) for model in options.models]
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    main()
