"""Dot products of bfloat16 by the machine's instruction, VDPBF16PS of AVX512-BF16.

It adds the two products one after the other, each with one rounding to nearest even, as FMA does. Subnormal operands and
results count as zero. There is no portable version: without the instruction, kernels cast bfloat16 to float32 and use FMA.
"""

from __future__ import annotations

from typing import Any, Final

from quantcli.kernels.simd.vector import call, machine_features

HAS_BFLOAT_DOT: Final = {"avx512f", "avx512bf16"} <= machine_features()
"""Whether the machine has the instruction for sixteen lanes."""


def emit_dot_bfloats(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """total + dot products of two neighbouring bfloat16: `total` is sixteen float32, `a` and `b` sixteen words of two each.

    LLVM declares vectors of bfloat16, for which llvmlite has no type. It converts calls with words, as older versions had.
    """
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", total.type, [total, a, b])
