"""How long the first use takes, with an empty cache of compiled kernels.

    python tests/bench/first_use.py [TYPE ...] [--runs 3]

Whole processes by wall time, each with the cache that the ones before it left: a conversion of the example to Q4_K_M, `run`
of its file, and conversions to further types, with an importance matrix where a type needs one. Prints medians over the
runs, which begin with empty caches.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from quantcli.conversion.recipes import find_recipe
from quantcli.kernels.blocks import codec

EXAMPLE = Path(__file__).parents[2] / "examples" / "storyteller"
TYPES = ("Q5_K_M", "Q3_K_M", "Q2_K", "Q8_0", "IQ4_XS", "Q4_0", "IQ3_S", "IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M")


def run(cache: Path, *arguments: str) -> float:
    """Seconds of a command."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "quantcli", *arguments]
    environment = {**os.environ, "QUANTCLI_CACHE_DIR": str(cache)}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - start


def first_uses(types: Sequence[str]) -> dict[str, float]:
    """Seconds of each first use."""
    with tempfile.TemporaryDirectory() as folder:
        place, model = Path(folder), str(Path(folder) / "model.gguf")
        matrix, text = str(place / "imatrix.gguf"), place / "text.txt"
        taken = {"--type Q4_K_M": run(place, str(EXAMPLE), "--type", "Q4_K_M", "-o", model)}
        taken["run, 8 tokens"] = run(place, "run", model, "--prompt", "Once upon a time", "-n", "8", "--temp", "0")
        text.write_text((EXAMPLE.parents[1] / "README.md").read_text(encoding="utf-8") * 2, encoding="utf-8")
        run(place, "imatrix", str(EXAMPLE), "--text", str(text), "--chunks", "2", "--ctx", "256", "-o", matrix)
        for name in types:
            guided = codec(find_recipe(name).base).quantize is None
            more = ["--imatrix", matrix] if guided or name.startswith("IQ3") else []
            output = str(place / f"{name}.gguf")
            taken[f"--type {name}"] = run(place, str(EXAMPLE), "--type", name, *more, "-o", output)
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", default=TYPES, metavar="TYPE")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    runs = [first_uses(options.types) for _ in range(options.runs)]
    print("| first use | seconds |\n| --- | ---: |")
    for name in runs[0]:
        print(f"| {name} | {median(taken[name] for taken in runs):.1f} |")


if __name__ == "__main__":
    main()
