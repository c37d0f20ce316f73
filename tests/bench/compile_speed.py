"""How long the first use of a type takes: the processor seconds to compile its kernels, with an empty cache.

    python tests/bench/compile_speed.py [TYPE ...] [--runs 3] [--beside TREE ...]

Prints a Markdown table, the median of the runs. Every number is of the first call in a fresh process, after the imports;
it includes what numba prepares once in a process, the same for every kernel. A type that needs an importance vector, or
has no use for one, has a dash. TREE is another checkout, measured in the same turns: its numbers come second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from quantcli.core.block_types import TYPES, BlockType, block_type

HERE = Path(__file__).parents[2]

FIRST_CALL = """
import sys, time
import numpy as np
from quantcli.core.block_types import block_type
from quantcli.kernels import rows
from quantcli.kernels.blocks import codec

kind, what = block_type(sys.argv[1]), sys.argv[2]
functions = codec(kind)
x, packed = np.zeros((1, kind.block_length), np.float32), np.zeros((1, kind.block_bytes), np.uint8)
if what == "dequantize":
    call = lambda: rows.dequantize(packed, kind)
elif what == "plain" and functions.quantize:
    call = lambda: rows.quantize(x, kind, None, packed)
elif what == "weighted" and functions.quantize_weighted:
    call = lambda: rows.quantize(x, kind, np.ones(kind.block_length, np.float32), packed)
else:
    sys.exit()
start = time.process_time()
call()
print(time.process_time() - start)
"""
KERNELS = ("plain", "weighted", "dequantize")


def seconds(kind: BlockType, what: str, tree: Path) -> float | None:
    """The processor seconds of one first call with the package of a tree, None where the type has no such kernel."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", FIRST_CALL, kind.name, what]  # which imports from the folder it runs in
        environment = {**os.environ, "QUANTCLI_CACHE_DIR": cache}
        taken = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=tree, env=environment).stdout
    return float(taken) if taken else None


def cell(kind: BlockType, what: str, trees: list[Path], runs: int) -> str:
    """The medians for each tree, measured in turn."""
    turns = [[seconds(kind, what, tree) for tree in trees] for _ in range(runs)]
    columns = [[taken for taken in column if taken is not None] for column in zip(*turns, strict=True)]
    return " / ".join(f"{median(column):.2f}" if column else "-" for column in columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="type names; all that have kernels where none is given")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--beside", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    kinds = [block_type(name) for name in arguments.types] or [kind for kind in TYPES.values() if kind.family]
    trees = [HERE, *(tree.resolve() for tree in arguments.beside)]
    print(f"processor seconds of the first call, median of {arguments.runs}\n")
    print("| type | quantize | with importance | dequantize |")
    print("| --- | ---: | ---: | ---: |")
    for kind in kinds:
        cells = (cell(kind, what, trees, arguments.runs) for what in KERNELS)
        print(f"| {kind.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
