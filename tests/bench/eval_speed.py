"""How fast is `quantize eval FILE --base BASE`? Beside the two passes of llama-perplexity, and with the same figures.

    python tests/bench/eval_speed.py FILE --base BASE --text F --llama-perplexity PROGRAM
                                     [--ctx 512] [--chunks 16] [--threads 2] [--runs 3] [--imatrix PROGRAM]

PROGRAM is llama.cpp's binary. Its first pass writes the base's predictions to a file, its second compares the model with
them. Whole processes by wall time, in turns; medians. Prints both divergences. Memory is the peak of the process's private
memory (RssAnon of Linux), sampled a hundred times a second.

With `--imatrix` also `quantize imatrix BASE` beside llama-imatrix, on the same text and chunks.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median


def timed(command: Sequence[str]) -> tuple[float, float, str]:
    """Run a command. Returns seconds, peak private MiB, and what it printed."""
    with tempfile.TemporaryFile("w+") as printed:
        start, peak = time.perf_counter(), 0
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, text=True)
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                status = ""
            found = re.search(r"RssAnon:\s+(\d+)", status)
            peak = max(peak, int(found[1]) if found else 0)
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        printed.seek(0)
        output = printed.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{output[-2000:]}")
    return seconds, peak / 1024, output


def divergence(options: argparse.Namespace, folder: Path) -> tuple[list[list[str]], list[list[str]]]:
    """The commands of llama.cpp and of quantcli."""
    predictions = str(folder / "base.kld")
    common = ["-c", str(options.ctx), "--chunks", str(options.chunks), "-t", str(options.threads), "--no-repack"]
    common = common if options.plain else common[:-1]
    program = [str(options.llama_perplexity), *common, "--kl-divergence-base", predictions]
    return [
        [*program, "-m", str(options.base), "-f", str(options.text)],
        [*program, "-m", str(options.file), "--kl-divergence"],
    ], [
        [
            sys.executable, "-m", "quantcli", "eval", str(options.file), "--base", str(options.base), "--text",
            str(options.text), "--ctx", str(options.ctx), "--chunks", str(options.chunks),
            "--threads", str(options.threads),
        ]
    ]  # fmt: skip


def importance(options: argparse.Namespace, folder: Path) -> tuple[list[list[str]], list[list[str]]]:
    """The commands of llama.cpp and of quantcli."""
    common = ["-m", str(options.base), "-f", str(options.text), "-c", str(options.ctx), "--chunks", str(options.chunks)]
    return [
        [str(options.imatrix), *common, "-t", str(options.threads), "-o", str(folder / "theirs.gguf")]
    ], [
        [
            sys.executable, "-m", "quantcli", "imatrix", str(options.base), "--text", str(options.text),
            "--ctx", str(options.ctx), "--chunks", str(options.chunks), "--threads", str(options.threads),
            "-o", str(folder / "ours.gguf"), "--overwrite",
        ]
    ]  # fmt: skip


def compare(name: str, commands: tuple[list[list[str]], list[list[str]]], runs: int) -> None:
    """Run both programs in turns and print a row of the table."""
    theirs, ours = commands
    for command in ours:  # compiles the kernels
        timed(command)
    turns: list[tuple[list[tuple[float, float, str]], list[tuple[float, float, str]]]] = [
        ([timed(command) for command in theirs], [timed(command) for command in ours]) for _ in range(runs)
    ]
    seconds = [[sum(run[0] for run in side) for side in turn] for turn in turns]
    memory = [max(run[1] for turn in turns for run in turn[side]) for side in range(2)]
    ratio = median(other / own for other, own in seconds)
    middle = [median(column) for column in zip(*seconds, strict=True)]
    print(f"| {name} | {middle[0]:.1f} | {middle[1]:.1f} | {ratio:.2f} | {memory[0]:.0f} | {memory[1]:.0f} |", flush=True)
    for side in turns[0]:
        for line in re.findall(r".*(?:Mean +KLD|KL divergence|Final estimate|Same top).*", side[-1][2]):
            print(f"    {line.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--llama-perplexity", type=Path, required=True)
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="llama.cpp without repacked weights")
    options = parser.parse_args()
    print("| | llama.cpp, s | quantcli, s | ratio | llama.cpp, private MiB | quantcli, private MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        compare("eval --base", divergence(options, Path(folder)), options.runs)
        if options.imatrix:
            compare("imatrix", importance(options, Path(folder)), options.runs)


if __name__ == "__main__":
    main()
