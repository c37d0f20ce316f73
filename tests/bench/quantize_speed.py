"""How fast are the quantizers? Ours against ggml's own, one thread each, on the same rows in the same run.

    python tests/bench/quantize_speed.py [TYPE ...] [--rows N] [--length N] [--repeats N]

Prints a Markdown table: nanoseconds per weight, the median of the repeats, and how many times faster ours is. The two take
turns, so that a change of the machine's pace meets both; kernels are compiled before the clock starts, and the bytes are
compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from ggml_library import Quantizer, find_quantizer

from quantcli.core.block_types import TYPES, BlockType, block_type
from quantcli.kernels.blocks import Codec, codec
from quantcli.kernels.rows import quantize

Weights = NDArray[np.float32]


def main() -> None:
    options = _arguments()
    reference = find_quantizer()
    if reference is None:
        sys.exit("llama-cpp-python is not installed: nothing to compare with")
    random = np.random.default_rng(1)
    x = (random.standard_normal((options.rows, options.length)) * 0.02).astype(np.float32)
    importance = np.exp(random.standard_normal(options.length)).astype(np.float32)
    print(f"{options.rows} rows of {options.length}, median of {options.repeats}, ns per weight\n")
    print("| type | importance | ggml | quantcli | times faster | same bytes |")
    print("| --- | --- | ---: | ---: | ---: | --- |")
    for kind in options.types:
        functions = _codec(kind)
        if functions is None:
            continue
        for weights in (None, importance):
            if functions.quantize is not None or weights is not None:
                print(_row(kind, x, weights, reference, options.repeats), flush=True)


def _codec(kind: BlockType) -> Codec | None:
    """The functions of a type, None where its family is not there yet."""
    try:
        return codec(kind)
    except (ModuleNotFoundError, KeyError):
        return None


def _row(kind: BlockType, x: Weights, importance: Weights | None, reference: Quantizer, repeats: int) -> str:
    out = np.empty((len(x), kind.row_bytes(x.shape[1])), np.uint8)
    same = np.array_equal(quantize(x, kind, importance, out), reference(x, kind, importance))
    contestants: list[Callable[[], object]] = [
        lambda: reference(x, kind, importance, out),
        lambda: quantize(x, kind, importance, out),
    ]
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        for contestant, results in zip(contestants, times, strict=True):
            start = perf_counter()
            contestant()
            results.append((perf_counter() - start) / x.size * 1e9)
    theirs, ours = (median(results) for results in times)
    used = "none" if importance is None else "given"
    return f"| {kind.name} | {used} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.1f} | {'yes' if same else 'NO'} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="type names; all packed types where none is given")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    packed = [kind for kind in TYPES.values() if kind.is_quantized and kind.family]
    options.types = [block_type(name) for name in options.types] or packed
    return options


if __name__ == "__main__":
    main()
