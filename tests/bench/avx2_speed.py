"""What AVX-512 is worth, and how fast kernels are without it: both measured on one machine that has it.

    python tests/bench/avx2_speed.py [TYPE ...] [--turns 5]

Kernels are compiled once for all features of the machine, and once for AVX2, FMA and F16C alone, in processes of their own
that take turns. Prints microseconds of processor time for a matrix of 1024 rows of 2048 weights: quantizing it, without an
importance matrix where the type allows it; a product with one column; one with 64 columns. The matrix is in the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from statistics import median

from instruction_bounds import AVX2

TYPES = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "IQ4_XS", "Q3_K", "Q2_K", "IQ3_S", "IQ2_XXS", "F16")

MEASURE = """
import json, sys
from time import process_time
from llvmlite import binding
features = sys.argv[1].split()
if features:
    found = binding.get_host_cpu_features()
    kept = type(found)({feature: feature in features for feature in found})
    binding.get_host_cpu_features = lambda: kept
import numpy as np
from quantcli.core.block_types import TYPES
from quantcli.kernels.blocks import codec
from quantcli.kernels.products.matmul import multiplier
from quantcli.kernels.rows import quantize
from quantcli.kernels.threads import use_threads
use_threads(1)
random = np.random.default_rng(0)
x = (0.02 * random.standard_normal((1024, 2048))).astype(np.float32)
one, many = (random.standard_normal((count, 2048)).astype(np.float32) for count in (1, 64))

def prepared(name):
    kind = TYPES[name]
    importance = None if codec(kind).quantize else np.ones(2048, np.float32)
    packed, multiply = quantize(x, kind, importance), multiplier(kind)
    few, lots = np.empty((1, 1024), np.float32), np.empty((64, 1024), np.float32)
    return (
        (lambda: quantize(x[:64], kind, importance), 16, 1),
        (lambda: multiply(packed, one, few), 1, 20),
        (lambda: multiply(packed, many, lots), 1, 2),
    )

def seconds(call, scale, times):
    start = process_time()
    for _ in range(times):
        call()
    return (process_time() - start) / times * scale

for line in sys.stdin:
    calls = prepared(line.strip())
    for call, _, _ in calls:
        call()
    print(json.dumps([seconds(*call) for call in calls]), flush=True)
"""


def start(features: tuple[str, ...], cache: str) -> subprocess.Popen[str]:
    """A process that measures types, whose names it reads from stdin, with kernels for these features; all if empty."""
    environment = {**os.environ, "QUANTCLI_CACHE_DIR": cache} | ({"NUMBA_CPU_NAME": "haswell"} if features else {})
    command = [sys.executable, "-c", MEASURE, " ".join(features)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(process: subprocess.Popen[str], name: str) -> list[float]:
    """Seconds to quantize, for one column, and for 64."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{name}\n")
    process.stdin.flush()
    found: list[float] = json.loads(process.stdout.readline())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", default=TYPES, metavar="TYPE")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    print("| type | quantize: all | AVX2 | times | one column: all | AVX2 | times | 64 columns: all | AVX2 | times |")
    print("| --- " + "| ---: " * 9 + "|")
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        processes = [start((), first), start(AVX2, second)]
        for name in options.types:
            turns = [[ask(process, name) for process in processes] for _ in range(options.turns)]
            cells = []
            for what in range(3):
                everything, reduced = (median(turn[side][what] for turn in turns) for side in range(2))
                cells += [f"{everything * 1e6:.0f}", f"{reduced * 1e6:.0f}", f"{reduced / everything:.2f}"]
            print("| " + " | ".join([name, *cells]) + " |", flush=True)
        for process in processes:
            process.communicate()


if __name__ == "__main__":
    main()
