"""What bounds a product of one column on processors that are not at hand: AVX2 without AVX-512, and 64-bit ARM.

    python tests/bench/instruction_bounds.py [TYPE ...] [--llvm-mca llvm-mca]

For each type: instructions per 256 weights in the innermost loop, and the cycles that LLVM's machine code analyser predicts
for them where all data is in the first-level cache (`Block RThroughput`: the bound by ports, without latencies). The AVX2
code is analysed for Zen 3 and Skylake, the ARM code for Cortex-A57, the newest generic ARM core that the analyser models in
all its versions. The ARM code is the portable IR of the kernels, compiled for that processor: nothing was run there.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

AVX2 = ("64bit", "cmov", "cx8", "fxsr", "mmx", "sse", "sse2", "sse3", "ssse3", "sse4.1", "sse4.2",
        "avx", "avx2", "fma", "f16c")  # fmt: skip
TYPES = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "IQ4_XS", "Q3_K", "Q2_K", "IQ3_S", "IQ2_XXS")

ASSEMBLY = """
import re, sys
from llvmlite import binding
name, features, target = sys.argv[1], sys.argv[2].split(), sys.argv[3]
if features:
    found = binding.get_host_cpu_features()
    kept = type(found)({feature: feature in features for feature in found})
    binding.get_host_cpu_features = lambda: kept
import numpy as np
from quantcli.core.block_types import TYPES
from quantcli.kernels.products.matmul import multiplier
kind = TYPES[name]
multiply = multiplier(kind)
multiply(np.zeros((64, kind.row_bytes(2048)), np.uint8), np.ones((1, 2048), np.float32), np.empty((1, 64), np.float32))
few = next(cell.cell_contents for cell in multiply.__closure__ if isinstance(cell.cell_contents, dict))
kernel = next(cell.cell_contents for cell in few[1].__closure__ if hasattr(cell.cell_contents, "inspect_asm"))
if not target:
    print("\\n".join(kernel.inspect_asm().values()))
else:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(target).create_target_machine(cpu="cortex-a57", opt=3)
    for text in kernel.inspect_llvm().values():
        # Only waiting and counting references use instructions of this machine: both stand outside of the loops.
        text = re.sub(r"(?m)^(target|attributes) .*$|^.*call void @llvm.x86.*$| #\\d+", "", text)
        module = binding.parse_assembly(re.sub(r"= (tail )?call (\\S+) @llvm.x86.*", r"= freeze \\2 undef", text))
        module.triple, module.data_layout = target, str(machine.target_data)
        print(machine.emit_assembly(module))
"""

MULTIPLICATIONS = {
    "x86": (re.compile(r"^\s*v?pmaddubsw\s.*%([xyz])mm\d+$"), {"x": 16, "y": 32, "z": 64}),
    "aarch64": (re.compile(r"^\s*(?:s|u)?ml?(?:ul|la|lal|ull)2?\s+v\d+\.(8h|4s)"), {"8h": 8, "4s": 4}),
}
"""Integer multiplications of codes by activations: their lanes by register name."""


def assembly(name: str, features: str, target: str, environment: dict[str, str]) -> str:
    """The machine code of the kernel of one column, compiled for these features or this target."""
    with tempfile.TemporaryDirectory() as cache:
        given = {**os.environ, **environment, "QUANTCLI_CACHE_DIR": cache}
        command = [sys.executable, "-c", ASSEMBLY, name, features, target]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=given).stdout


def loops(text: str) -> Iterator[list[str]]:
    """The innermost loops: instructions from a label to a jump back to it, without another such jump between."""
    places: dict[str, int] = {}
    code: list[str] = []
    newest = -1
    for line in text.splitlines():
        if label := re.match(r"(\.LBB\d+_\d+):", line):
            places[label[1]] = len(code)
        elif re.match(r"\s+[a-z]", line):
            code.append(line)
            jump = re.match(r"\s+(?:j[a-z]+|b\.?[a-z]*|cbn?z.*,|tbn?z.*,)\s+(\.LBB\d+_\d+)", line)
            start = places.get(jump[1], -1) if jump else -1
            if start > newest:
                yield code[start:-1]
            if start >= 0:
                newest = max(newest, len(code) - 1)


def products(loop: list[str], machine: str) -> int:
    """The multiplications of an iteration."""
    pattern, lanes = MULTIPLICATIONS[machine]
    return sum(lanes[found[1]] for line in loop if (found := pattern.match(line)))


def cycles(loop: list[str], analyser: str, machine: str, cpu: str) -> float:
    """The predicted cycles of an iteration."""
    command = [analyser, f"-mtriple={machine}-linux-gnu", f"-mcpu={cpu}", "-iterations=100"]
    code = "\n".join(loop)
    printed = subprocess.run(command, input=code, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = re.search(r"Block RThroughput:\s+([\d.]+)", printed)
    assert found, printed
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", default=TYPES, metavar="TYPE")
    parser.add_argument("--llvm-mca", default="llvm-mca")
    options = parser.parse_args()
    print("| type | AVX2: instructions | Zen 3, cycles | Skylake, cycles | ARM: instructions | Cortex-A57, cycles |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    portable = {"QUANTCLI_SIMD": "generic", "NUMBA_CPU_NAME": "generic"}
    for name in options.types:
        row = [name]
        for machine, features, target, environment, processors in (
            ("x86_64", " ".join(AVX2), "", {"NUMBA_CPU_NAME": "haswell"}, ("znver3", "skylake")),
            ("aarch64", "", "aarch64-linux-gnu", portable, ("cortex-a57",)),
        ):
            kind = "x86" if machine == "x86_64" else machine
            text = assembly(name, features, target, environment)
            loop = max(loops(text), key=lambda code: products(code, kind))
            per = 256 / max(products(loop, kind), 1)
            row.append(f"{len(loop) * per:.0f}")
            row += [f"{cycles(loop, options.llvm_mca, machine, cpu) * per:.0f}" for cpu in processors]
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
