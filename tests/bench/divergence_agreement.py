"""The divergence of files from a base by `quantize eval` and by llama-perplexity, with and without flash attention.

    python tests/bench/divergence_agreement.py BASE FILE... --text F --llama-perplexity PROGRAM [--ctx N] [--chunks N]

Prints the rows of the table in docs/fidelity.md. llama-perplexity writes the base's predictions to a temporary file: for a
vocabulary of 262,144 tokens about half a megabyte for each scored token.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS: tuple[tuple[str, ...], ...] = ((), ("-fa", "off"), ("-fa", "off", "-ctk", "f32", "-ctv", "f32"))


def ours(options: argparse.Namespace) -> list[float]:
    words = [*options.files, "--base", options.base, "--text", options.text, "--ctx", options.ctx, "--json"]
    chunks = () if options.chunks is None else ("--chunks", options.chunks)
    command = [sys.executable, "-m", "quantcli", "eval", *map(str, (*words, *chunks))]
    document = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [entry["kl_divergence"]["mean"] for entry in document["results"]]


def theirs(options: argparse.Namespace, setting: tuple[str, ...], folder: Path) -> list[float]:
    chunks = () if options.chunks is None else ("--chunks", str(options.chunks))
    predictions = ("--kl-divergence-base", str(folder / "base.kld"))
    common = ("-f", str(options.text), "-c", str(options.ctx), *chunks, *setting, *predictions)
    found = []
    for number, file in enumerate([options.base, *options.files]):
        command = [str(options.llama_perplexity), "-m", str(file), *common, *(("--kl-divergence",) if number else ())]
        for _ in range(3):  # it sometimes ends without its summary
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            match = re.search(r"Mean\s+KLD:\s*([0-9.eE+-]+)", said)
            if match or not number:
                break
        if number:
            found.append(float(match.group(1)) if match else float("nan"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--llama-perplexity", type=Path, required=True)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        columns = [ours(options), *(theirs(options, setting, Path(folder)) for setting in SETTINGS)]
    for file, *row in zip(options.files, *columns, strict=True):
        print("|", " | ".join([file.stem, *(f"{value:.5f}" for value in row)]), "|")


if __name__ == "__main__":
    main()
