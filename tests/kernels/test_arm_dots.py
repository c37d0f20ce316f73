"""The dot product instructions of ARM, as far as a machine without them can test them: what LLVM makes of the code."""

from __future__ import annotations

import pytest
from llvmlite import binding, ir

from quantcli.kernels.simd.integer_dot import emit_signed_dots
from quantcli.kernels.simd.vector import I32, has_arm_dot_products

TRIPLE = "aarch64-linux-gnu"


def machine(cpu: str, features: str = "") -> binding.TargetMachine:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    return binding.Target.from_triple(TRIPLE).create_target_machine(cpu=cpu, features=features)


@pytest.mark.parametrize(
    ("cpu", "features", "has"),
    [("cortex-a57", "", False), ("generic", "", False), ("generic", "+dotprod", True), ("neoverse-n1", "", True)],
)
def test_dot_products_are_found_by_the_processor_or_its_features(cpu, features, has):
    assert has_arm_dot_products(machine(cpu, features)) is has


@pytest.mark.parametrize("registers", [1, 2, 4])
def test_a_register_takes_one_instruction(registers):
    module, codes, sums = ir.Module(), ir.VectorType(ir.IntType(8), 16 * registers), ir.VectorType(I32, 4 * registers)
    places = [kind.as_pointer() for kind in (sums, codes, codes)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), places), "dots")
    builder = ir.IRBuilder(function.append_basic_block())
    total, x, y = (builder.load(place) for place in function.args)
    builder.store(emit_signed_dots(builder, total, x, y), function.args[0])
    builder.ret_void()
    parsed = binding.parse_assembly(str(module))
    parsed.triple = TRIPLE
    lines = [line.split() for line in machine("neoverse-n1").emit_assembly(parsed).splitlines()]
    instructions = [line[0] for line in lines if line and line[0].isalnum()]
    assert instructions.count("sdot") == registers
    # Loads and stores aside, nothing else: no lanes are moved.
    assert {name for name in instructions if not name.startswith(("ld", "st"))} == {"sdot", "ret"}
