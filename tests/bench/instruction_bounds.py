"""What bounds the main kernels on processors that are not at hand: AVX2 without AVX-512, and 64-bit ARM.

    python tests/bench/instruction_bounds.py [TYPE ...] [--kernels one many search] [--llvm-mca llvm-mca]

For each type: the instructions of the innermost loop, and the cycles that LLVM's machine code analyser predicts for them
where all data is in the first-level cache (`Block RThroughput`: the bound by ports, without latencies). Both are for 256
multiplications of a code by an activation, in products with one column and with many, or for 256 roundings of a weight to a
code with one candidate of the scale, in the search of the K-quants.

The AVX2 code is analysed for Zen 3 and Skylake. The ARM code is compiled for Cortex-A57, which has no dot products of
bytes, and that of the products also for Neoverse N1, which has them (SDOT). The analyser models both as Cortex-A57, the
newest generic ARM core that it has in all its versions. Nothing was run there.
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
import ctypes, re, sys
from llvmlite import binding
name, features, target, what, cpu = sys.argv[1], sys.argv[2].split(), *sys.argv[3:]
if features:
    found = binding.get_host_cpu_features()
    kept = type(found)({feature: feature in features for feature in [*found, *features]})
    binding.get_host_cpu_features = lambda: kept
from quantcli.kernels.simd import integer_dot

# numba compiles for this machine, where a function without effect stands in for ARM's instruction.
SDOT, STAND_IN = "llvm.aarch64.neon.sdot.v4i32.v16i8", "stand_in_for_sdot"
binding.add_symbol(STAND_IN, ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value)
call = integer_dot.call

def call_or_stand_in(builder, function, *rest):
    result = call(builder, function.replace(SDOT, STAND_IN), *rest)
    if function == SDOT:
        builder.module.globals[STAND_IN].attributes.update(("readnone", "nounwind"))
    return result

integer_dot.call = call_or_stand_in
import numpy as np
from quantcli.core.block_types import TYPES
from quantcli.kernels.blocks import codec
from quantcli.kernels.products.matmul import multiplier
from quantcli.kernels.rows import quantize

def compiled(function):
    cells = [function, *(cell.cell_contents for cell in getattr(function, "__closure__", None) or ())]
    return next(cell for cell in cells if hasattr(cell, "inspect_asm"))

kind = TYPES[name]
if what == "search":
    functions = codec(kind)
    importance = None if functions.quantize else np.ones(2048, np.float32)
    quantize(np.ones((1, 2048), np.float32), kind, importance)
    kernel = compiled(functions.quantize or functions.quantize_weighted)
else:
    columns = 1 if what == "one" else 16
    multiply, out = multiplier(kind), np.empty((columns, 64), np.float32)
    multiply(np.zeros((64, kind.row_bytes(2048)), np.uint8), np.ones((columns, 2048), np.float32), out)
    cells = [cell.cell_contents for cell in multiply.__closure__]
    kernel = compiled(next(cell[1] if what == "one" else None for cell in cells if isinstance(cell, dict)) or
                      next(cell for cell in cells if not isinstance(cell, dict)))
if not target:
    print("\\n".join(kernel.inspect_asm().values()))
else:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(target).create_target_machine(cpu=cpu, opt=3)
    for text in kernel.inspect_llvm().values():
        # Only waiting and counting references use instructions of this machine: both stand outside of the loops.
        text = re.sub(r"(?m)^(target|attributes) .*$|^.*call void @llvm.x86.*$| #\\d+", "", text)
        text = re.sub(r"= (tail )?call (\\S+) @llvm.x86.*", r"= freeze \\2 undef", text).replace(STAND_IN, SDOT)
        module = binding.parse_assembly(text)
        module.triple, module.data_layout = target, str(machine.target_data)
        print(machine.emit_assembly(module))
"""

COUNTED = {
    ("product", "x86_64"): (re.compile(r"^\s*v?pmaddubsw\s.*%([xyz])mm\d+$"), {"x": 16, "y": 32, "z": 64}),
    ("product", "aarch64"): (re.compile(r"^\s*(?:s|u)?ml?(?:ul|la|lal|ull)2?\s+v\d+\.(8h|4s)"), {"8h": 8, "4s": 4}),
    ("product", "dotprod"): (re.compile(r"^\s*sdot\s+v\d+\.(4s)"), {"4s": 16}),
    ("search", "x86_64"): (re.compile(r"^\s*vp?min(?:ud|sd|ps)\s.*%([xyz])mm\d+$"), {"x": 4, "y": 8, "z": 16}),
    ("search", "aarch64"): (re.compile(r"^\s*(?:umin|smin|fminnm|fmin)\s+v\d+\.(4s|2s)"), {"4s": 4, "2s": 2}),
}
"""The instructions that are counted, and their lanes by register name: integer multiplications of codes by activations; and
minimums, one for each code that the search limits to the type's range."""


def assembly(name: str, features: str, target: str, what: str, cpu: str, environment: dict[str, str]) -> str:
    """The machine code of a kernel, compiled for these features, or for this target and processor."""
    with tempfile.TemporaryDirectory() as cache:
        given = {**os.environ, **environment, "QUANTCLI_CACHE_DIR": cache}
        command = [sys.executable, "-c", ASSEMBLY, name, features, target, what, cpu]
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


def units(loop: list[str], kind: str, machine: str) -> int:
    """The multiplications or roundings of an iteration."""
    pattern, lanes = COUNTED[kind, machine]
    shapes = [found[1] for line in loop if (found := pattern.match(line))]
    if "8h" in shapes:
        # Where bytes are multiplied as 16 bits, products of 32 bits are those of sums by scales.
        shapes = [shape for shape in shapes if shape == "8h"]
    return sum(lanes[shape] for shape in shapes)


def cycles(loop: list[str], analyser: str, triple: str, cpu: str) -> float:
    """The predicted cycles of an iteration."""
    command = [analyser, f"-mtriple={triple}", f"-mcpu={cpu}", "-iterations=100"]
    code = "\n".join(loop)
    printed = subprocess.run(command, input=code, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = re.search(r"Block RThroughput:\s+([\d.]+)", printed)
    assert found, printed
    return float(found[1])


def cells(name: str, what: str, analyser: str) -> list[str]:
    """A row of the table."""
    row, kind = [name, what], "search" if what == "search" else "product"
    generic, arm = {"NUMBA_CPU_NAME": "generic"}, "aarch64-linux-gnu"
    variants = [
        ("x86_64", " ".join(AVX2), "", {"NUMBA_CPU_NAME": "haswell"}, ("znver3", "skylake")),
        ("aarch64", "", arm, generic | {"QUANTCLI_SIMD": "generic"}, ("cortex-a57",)),
    ]
    if kind == "product":
        variants.append(("dotprod", "dotprod", arm, generic, ("neoverse-n1",)))
    for machine, features, target, environment, processors in variants:
        found = loops(assembly(name, features, target, what, processors[0], environment))
        counted = [loop for loop in found if units(loop, kind, machine)]
        # Of a search, the loop over candidates, which has most multiplications of floats.
        loop = max(counted, key=lambda code: sum("mul" in line for line in code))
        per = 256 / units(loop, kind, machine)
        row.append(f"{len(loop) * per:.0f}")
        triple = target or f"{machine}-linux-gnu"
        row += [f"{cycles(loop, analyser, triple, cpu) * per:.0f}" for cpu in processors]
    return row + [""] * (2 if kind == "search" else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", default=TYPES, metavar="TYPE")
    parser.add_argument("--kernels", nargs="+", default=["one", "many", "search"], choices=["one", "many", "search"])
    parser.add_argument("--llvm-mca", default="llvm-mca")
    options = parser.parse_args()
    heads = ["type", "kernel", "AVX2: instructions", "Zen 3: cycles", "Skylake: cycles", "ARM: instructions", "cycles",
             "with SDOT: instructions", "cycles"]  # fmt: skip
    print(f"| {' | '.join(heads)} |\n| --- | --- |{' ---: |' * (len(heads) - 2)}")
    for what in options.kernels:
        for name in options.types:
            print("| " + " | ".join(cells(name, what, options.llvm_mca)) + " |", flush=True)


if __name__ == "__main__":
    main()
