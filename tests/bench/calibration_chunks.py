"""What more calibration text changes: importance matrices of the built-in text by their number of chunks.

    python tests/bench/calibration_chunks.py MODEL TEXT [--type Q3_K_M]

For each number of chunks: how far the values are from those of the whole text (median and 95th percentile of the relative
differences of all columns), and the KL divergence from MODEL, on TEXT, of the file that is quantized with them. The first
row is without an importance matrix.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from quantcli.formats.imatrix import read_imatrix

COUNTS = (5, 10, 25, 50, 100, 200, None)
"""Numbers of chunks; None is the whole text."""


def quantize(*words: object) -> Any:
    """Run the command, and return its JSON document."""
    line = [sys.executable, "-m", "quantcli", *map(str, words), "--json"]
    return json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure, and print a row for each number of chunks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--type", default="Q3_K_M")
    parser.add_argument("--eval-chunks", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        quantize(given.model, "--type", "F16", "-o", place / "base.gguf")
        quantize(place / "base.gguf", "--type", given.type, "-o", place / "none.gguf")
        found, files = [], [place / "none.gguf"]
        for count in COUNTS:
            imatrix, output = place / f"{count}.imatrix", place / f"{count}.gguf"
            limit = () if count is None else ("--chunks", count)
            quantize("imatrix", place / "base.gguf", "--text", "auto", *limit, "-o", imatrix)
            quantize(place / "base.gguf", "--type", given.type, "--imatrix", imatrix, "-o", output)
            found.append(read_imatrix(imatrix))
            files.append(output)
        whole = found[-1].entries
        document = quantize(
            "eval", *files, "--base", place / "base.gguf", "--text", given.text, "--chunks", given.eval_chunks
        )
        rows = [row["kl_divergence"] for row in document["results"]]
        print("chunks  median  95th percentile  KL divergence  standard error")
        print(f"{'none':>6}  {'':6}  {'':15}  {rows[0]['mean']:13.5f}  {rows[0]['stderr']:14.5f}")
        for imatrix, row in zip(found, rows[1:], strict=True):
            apart = np.concatenate([np.abs(imatrix.entries[name] / whole[name] - 1).ravel() for name in whole])
            median, high = np.quantile(apart, [0.5, 0.95])
            print(f"{imatrix.chunks:6}  {median:6.1%}  {high:15.1%}  {row['mean']:13.5f}  {row['stderr']:14.5f}")


if __name__ == "__main__":
    main()
