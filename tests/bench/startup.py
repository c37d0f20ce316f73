"""How soon the commands answer that compute nothing, beside what Python and click take by themselves.

    python tests/bench/startup.py [--runs 15] [--beside TREE ...]

Every program runs as a process of its own, all of them in turn, `runs` times; the table has the median and the least of
each in milliseconds. TREE is another checkout, such as one of an earlier commit, measured in the same turns. The files
inspected are made here: a small model, and one with a vocabulary of 150 thousand tokens and as many merges.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from quantcli.core.block_types import TYPES
from quantcli.formats.gguf import vocabulary
from quantcli.formats.gguf.spec import Metadata, ValueType, array, string, u32
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.tensors.tensor import TensorInfo

HERE = Path(__file__).parents[2]
QUANTIZE = "from quantcli.cli.main import main; main()"


def make_file(path: Path, tokens: int) -> str:
    """Write a model of 32 layers with empty weights and a byte-level vocabulary."""
    metadata: Metadata = {
        "general.architecture": string("llama"),
        "general.file_type": u32(15),
        vocabulary.MODEL: string("gpt2"),
        vocabulary.TOKENS: array(ValueType.STRING, [f"Ġword{index}" for index in range(tokens)]),
        vocabulary.TOKEN_TYPES: array(ValueType.INT32, [1] * tokens),
        vocabulary.MERGES: array(ValueType.STRING, [f"Ġword {index}" for index in range(tokens)]),
        vocabulary.SPECIAL_TOKENS["eos"]: u32(tokens - 1),
    }
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down")
    tensors = [TensorInfo(f"blk.{layer}.{name}.weight", (1, 256), TYPES["Q4_K"]) for layer in range(32) for name in names]
    with GGUFWriter(path, metadata, tensors) as writer:
        for index, tensor in enumerate(tensors):
            writer.write(index, 0, bytes(tensor.nbytes))
    return str(path)


def measure(programs: dict[str, list[str]], trees: list[Path], runs: int) -> dict[str, list[list[float]]]:
    """The milliseconds of each run of each program with the package of each tree."""
    taken: dict[tuple[str, Path], list[float]] = {(name, tree): [] for name in programs for tree in trees}
    for turn in range(runs + 1):
        for (name, tree), times in taken.items():
            start = time.perf_counter()
            command = [sys.executable, "-c", *programs[name]]  # which imports from the folder it runs in
            subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=tree)
            if turn:  # the first fills the caches of files and bytecode
                times.append(1000 * (time.perf_counter() - start))
    return {name: [taken[name, tree] for tree in trees] for name in programs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--beside", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small, large = make_file(Path(folder) / "small.gguf", 100), make_file(Path(folder) / "large.gguf", 150_000)
        programs = {
            "python -c pass": ["pass"],
            "import click": ["import click"],
            "quantize --help": [QUANTIZE, "--help"],
            "inspect SMALL": [QUANTIZE, "inspect", small],
            "inspect SMALL --tensors": [QUANTIZE, "inspect", small, "--tensors"],
            "inspect SMALL --json": [QUANTIZE, "inspect", small, "--json"],
            "inspect LARGE": [QUANTIZE, "inspect", large],
            "inspect LARGE --json": [QUANTIZE, "inspect", large, "--json"],
        }
        trees = [HERE, *(tree.resolve() for tree in arguments.beside)]
        taken = measure(programs, trees, arguments.runs)
    print(f"{'milliseconds, median/least':26}" + "".join(f"{tree.name:>16}" for tree in trees))
    for name, runs in taken.items():
        print(f"{name:26}" + "".join(f"{statistics.median(times):>8.0f} / {min(times):>5.0f}" for times in runs))


if __name__ == "__main__":
    main()
