"""How fast are matrix products with one column, as generation computes them, and with a few?

    python tests/bench/few_columns_speed.py [TYPE ...] [--cached] [--columns 2 3 4 8] [--threads 1] [--peer]
                                            [--rows 4096] [--length 2048] [--megabytes 256] [--repeats 9]

Prints a Markdown table, a row per type: microseconds of a product with one column, gigabytes of weights multiplied in a
second, and what products with more columns take relative to one. The weights come from memory: a turn multiplies copy
after copy of the weight matrix in a mapped file, together larger than the last-level cache, as generation does.
With `--cached` it multiplies one copy again and again, which stays in the cache if the matrix is small enough.
`--peer` adds how fast one column is relative to llama.cpp's product, in its own layout of the weights where it has one
(marked `*`). One thread is measured by processor time, several by wall time. All take turns, and ratios are medians over
the turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from ggml_products import Ggml, Products

from quantcli.core.block_types import BlockType, block_type
from quantcli.kernels.products.matmul import Multiply, multiplier
from quantcli.kernels.rows import quantize
from quantcli.kernels.threads import use_threads

TYPES = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "IQ4_XS")
DIFFERENT_ROWS = 64
"""Rows that are quantized; the matrix repeats them."""

Turn = Callable[[], object]


def main() -> None:
    options = _arguments()
    use_threads(options.threads)
    ggml = Ggml(options.threads) if options.peer else None
    place = "the cache" if options.cached else "memory"
    print(f"{options.threads} threads, {options.rows} rows of {options.length}, weights from {place}, "
          f"median of {options.repeats}\n")
    heads = ["type", "us", "GB/s", *map(str, options.columns), *(["to llama.cpp"] if ggml else [])]
    print(f"| {' | '.join(heads)} |\n| --- |{' ---: |' * (len(heads) - 1)}")
    for kind in options.types:
        with tempfile.TemporaryDirectory() as folder:
            print(_row(kind, _weights(kind, options, Path(folder) / "weights"), ggml, options), flush=True)


def _weights(kind: BlockType, options: argparse.Namespace, path: Path) -> NDArray[np.uint8]:
    """The weights in a mapped file, uint8 (copies, rows, row_bytes)."""
    random = np.random.default_rng(0)
    values = (random.standard_normal((DIFFERENT_ROWS, options.length)) * 0.02).astype(np.float32)
    importance = np.ones(options.length, np.float32) if kind.name.startswith("IQ") else None
    matrix = np.resize(quantize(values, kind, importance), (options.rows, kind.row_bytes(options.length)))
    copies = 1 if options.cached else -(-options.megabytes * 10**6 // matrix.nbytes)
    with path.open("wb") as file:
        for _ in range(copies):
            file.write(matrix)
    return np.memmap(path, np.uint8, "r", shape=(copies, *matrix.shape))


def _row(kind: BlockType, weights: NDArray[np.uint8], ggml: Ggml | None, options: argparse.Namespace) -> str:
    random, multiply = np.random.default_rng(1), multiplier(kind)
    # Weights in the cache are multiplied as many times as there are copies of them in memory.
    passes = -(-options.megabytes * 10**6 // weights.nbytes) if options.cached else 1
    turns: list[Turn] = []
    for columns in (1, *options.columns):
        x = random.standard_normal((columns, options.length)).astype(np.float32)
        turns.append(_turn(multiply, weights, x, passes))
    products = None
    if ggml is not None:
        x = random.standard_normal((1, options.length)).astype(np.float32)
        products = Products(ggml, weights, kind, x)
        turns.append(lambda: [products.compute() for _ in range(passes)])
        _check(multiply, weights, x, products)
    clock = process_time if options.threads == 1 else perf_counter
    seconds = _measure(turns, clock, options.repeats) / (passes * len(weights))
    one, per_column = np.median(seconds[:, 0]), np.median(seconds[:, 1:] / seconds[:, :1], axis=0)
    cells = [kind.name, f"{one * 1e6:.0f}", f"{weights[0].nbytes / one / 1e9:.1f}"]
    cells += [f"{ratio:.2f}" for ratio in per_column]
    if products is not None:
        cells[-1] += "*" if products.is_repacked else ""
        products.close()
    return f"| {' | '.join(cells)} |"


def _turn(multiply: Multiply, weights: NDArray[np.uint8], x: NDArray[np.float32], passes: int) -> Turn:
    out, matrices = np.empty((len(x), weights.shape[1]), np.float32), list(weights.view(np.ndarray))

    def turn() -> None:
        for _ in range(passes):
            for matrix in matrices:
                multiply(matrix, x, out)

    turn()
    return turn


def _check(multiply: Multiply, weights: NDArray[np.uint8], x: NDArray[np.float32], products: Products) -> None:
    out = np.empty((len(x), weights.shape[1]), np.float32)
    multiply(weights[0], x, out)
    products.compute()
    assert np.abs(out - products.result()).max() < 0.02 * np.abs(out).max(), "the products differ"


def _measure(turns: list[Turn], clock: Callable[[], float], repeats: int) -> NDArray[np.float64]:
    """Seconds of each turn, (repeats, turns)."""
    seconds = np.empty((repeats, len(turns)))
    for repeat in range(repeats):
        for number, turn in enumerate(turns):
            start = clock()
            turn()
            seconds[repeat, number] = clock() - start
    return seconds


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", default=TYPES, help=f"type names; {' '.join(TYPES)} where none is given")
    parser.add_argument("--cached", action="store_true", help="weights in the cache instead of memory")
    parser.add_argument("--columns", type=int, nargs="*", default=[2, 3, 4, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", action="store_true", help="compare one column with llama.cpp's product")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    options.types = [block_type(name) for name in options.types]
    return options


if __name__ == "__main__":
    main()
