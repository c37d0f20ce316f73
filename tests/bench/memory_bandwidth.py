"""How fast this machine reads memory: the limit of generation, which reads all weights once per token.

    python tests/bench/memory_bandwidth.py [--threads 1 2] [--megabytes 1024] [--repeats 7]

Prints gigabytes per second, the median of the repeats, of a kernel that compares every number of an array with a limit.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter

import numpy as np

from quantcli.kernels.rows import first_beyond


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    numbers = np.ones(options.megabytes * 250_000, np.float32)
    first_beyond(numbers[:1], 2)
    for threads in options.threads:
        parts = np.array_split(numbers, threads)
        seconds = []
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(options.repeats):
                start = perf_counter()
                list(pool.map(first_beyond, parts, [2.0] * threads))
                seconds.append(perf_counter() - start)
        print(f"{threads} threads: {numbers.nbytes / median(seconds) / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
