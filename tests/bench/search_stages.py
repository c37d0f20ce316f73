"""What each stage of a K-quant's quantizer costs: shares of one thread's time, measured in the kernel by the clock counter.

    python tests/bench/search_stages.py [--rows 64] [--length 4096] [--repeats 9]

Prints a Markdown table: nanoseconds per weight of each stage, without an importance matrix, and without the clock's own
time. Q4_K and Q5_K try scales (21 and 16 of them) and fit scale and minimum by weighted least squares. The two passes of a
trial over the sub-blocks are timed by kernels of their own. Q3_K descends from one trial.
"""

from __future__ import annotations

import argparse
import ctypes
import inspect
import os
import tempfile
from collections.abc import Callable
from time import process_time
from typing import Any

# Kernels with a clock must not reach the cache of the others.
CACHE = tempfile.TemporaryDirectory()
os.environ["QUANTCLI_CACHE_DIR"] = CACHE.name

import numba  # noqa: E402
import numpy as np  # noqa: E402
from llvmlite import ir  # noqa: E402
from numba.core import cgutils, types  # noqa: E402
from numba.core.extending import intrinsic  # noqa: E402

from quantcli.core.block_types import TYPES  # noqa: E402
from quantcli.kernels.blocks import k_affine, k_symmetric  # noqa: E402
from quantcli.kernels.jit import inline  # noqa: E402
from quantcli.kernels.rounding import scale_search  # noqa: E402
from quantcli.kernels.simd import LANES, address, local, splat, store, sum_lanes  # noqa: E402

STAGES = ("gather and transpose", "search", "quantize the scales", "final levels", "transpose back", "pack", "the clock")
COUNTERS = (ctypes.c_int64 * len(STAGES))()
I64 = ir.IntType(64)
PLAIN = numba.njit(nogil=True, error_model="numpy")


@intrinsic
def ticks(typing: Any) -> Any:
    """The processor's time stamp."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I64, []), "llvm.readcyclecounter")
        return builder.call(function, [])

    return types.int64(), code


@intrinsic
def add_ticks(typing: Any, stage: Any, amount: Any) -> Any:
    """Add to a counter."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = ir.Constant(I64, ctypes.addressof(COUNTERS)).inttoptr(I64.as_pointer())
        place = builder.gep(first, [args[0]])
        builder.store(builder.add(builder.load(place), args[1]), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


def timed(function: Any, stage: str) -> Any:
    """The same `inline` function between two readings of the clock."""
    names = ", ".join(inspect.signature(getattr(function, "py_func", function)).parameters)
    source = f"""
def timed({names}):
    start = ticks()
    result = function({names})
    end = ticks()
    add_ticks({STAGES.index(stage)}, end - start)
    add_ticks({len(STAGES) - 1}, ticks() - end)
    return result
"""
    found: dict[str, Any] = {"function": function, "ticks": ticks, "add_ticks": add_ticks}
    exec(source, found)
    return inline(found["timed"])


def with_clock(module: Any, bits: int) -> Callable[..., None]:
    """The quantizer of a type without an importance matrix, compiled with a clock around each stage."""
    module.kernel = PLAIN
    stages = {
        "gather_batch": "gather and transpose", "transpose_group": "gather and transpose",
        "_final_levels": "final levels", "untranspose_group": "transpose back",
    }  # fmt: skip
    makers = {
        "_scale_quantizer": "quantize the scales", "_scale_writer": "quantize the scales",
        "_group_searcher": "search", "_batch_searcher": "search", "_block_packer": "pack",
    }  # fmt: skip
    kept = {name: getattr(module, name) for name in (*stages, *makers, "_PACK") if hasattr(module, name)}
    for name, stage in stages.items():
        setattr(module, name, timed(kept[name], stage))
    for name, stage in makers.items():
        if name in kept:
            setattr(module, name, lambda *how, name=name, stage=stage: timed(kept[name](*how), stage))
    if "_PACK" in kept:
        module._PACK = {number: timed(function, "pack") for number, function in kept["_PACK"].items()}
    quantizer = module._quantizer(bits, False)
    x, out = np.ones((1, 256), np.float32), np.empty((1, TYPES[f"Q{bits}_K"].row_bytes(256)), np.uint8)
    quantizer(x, out)
    for name, value in kept.items():
        setattr(module, name, value)
    return quantizer


def stage_times(module: Any, bits: int, x: np.ndarray, repeats: int) -> list[float]:
    """Nanoseconds per weight of each stage, of the repeat with the fewest ticks: others were interrupted."""
    quantizer = with_clock(module, bits)
    out = np.empty((len(x), TYPES[f"Q{bits}_K"].row_bytes(x.shape[1])), np.uint8)
    rows = []
    for _ in range(repeats):
        COUNTERS[:] = [0] * len(STAGES)
        start = process_time()
        quantizer(x, out)
        seconds, ticked = process_time() - start, np.array(COUNTERS, float)
        # The clock reads itself once for each call of a stage, in the stage's own time too.
        rows.append((ticked.sum(), ticked / (ticked.sum() + ticked[-1]) * seconds * 1e9 / x.size))
    return list(min(rows, key=lambda row: row[0])[1])


def repeated(one_pass: Any, size: int, rounds: int) -> Callable[..., None]:
    """A kernel that computes a pass of `rounds` trials over the same `size` weights: LANES sub-blocks, transposed."""

    @PLAIN
    def passes(x: Any, results: Any) -> None:
        values, weight = address(x, np.float32), local(size, np.float32)
        for place in range(0, size, LANES):
            store(weight, place, splat(np.float32(1), LANES))
        for number in range(rounds):
            inverse = splat(np.float32(5) + np.float32(number) * np.float32(0.001), LANES)
            low = splat(np.float32(-1), LANES)
            results[0] += sum_lanes(one_pass(values, weight, inverse, low))

    return passes


def trial_times(bits: int, repeats: int) -> dict[str, float]:
    """Nanoseconds per weight of the passes of one trial of Q4_K's and Q5_K's search."""
    top, length, rounds = (1 << bits) - 1, 32, 2000
    size, first, second = LANES * length, scale_search._affine_trial, scale_search._affine_error

    @inline
    def sums_of_levels(values: Any, weight: Any, inverse: Any, low: Any) -> Any:
        sums = first(values, weight, 0, length, top, inverse, low, False)
        return sums[0] + sums[1] + sums[2]

    @inline
    def error(values: Any, weight: Any, inverse: Any, low: Any) -> Any:
        return second(values, weight, 0, length, top, inverse, low, False, inverse, low, False)

    x, results, found = np.random.default_rng(0).standard_normal(size).astype(np.float32), np.zeros(1, np.float32), {}
    for name, one_pass in {"levels and their sums": sums_of_levels, "error": error}.items():
        kernel, times = repeated(one_pass, size, rounds), []
        kernel(x, results)
        for _ in range(repeats):
            start = process_time()
            kernel(x, results)
            times.append(process_time() - start)
        found[name] = min(times) / rounds / size * 1e9
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    x = (np.random.default_rng(1).standard_normal((options.rows, options.length)) * 0.02).astype(np.float32)
    columns = {
        f"Q{bits}_K": stage_times(module, bits, x, options.repeats)
        for module, bits in ((k_affine, 4), (k_affine, 5), (k_symmetric, 3))
    }
    print(f"| stage, ns per weight | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for number, stage in enumerate(STAGES[:-1]):
        print(f"| {stage} | {' | '.join(f'{times[number]:.3f}' for times in columns.values())} |")
    trials = [trial_times(bits, options.repeats) for bits in (4, 5)]
    for stage in trials[0]:
        print(f"| one trial: {stage} | {' | '.join(f'{times[stage]:.3f}' for times in trials)} | |")


if __name__ == "__main__":
    main()
