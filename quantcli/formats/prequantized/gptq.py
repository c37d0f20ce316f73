"""GPTQ: `qweight`, `qzeros`, `scales` and `g_idx` of each linear layer, 2, 3, 4 or 8 bits.

Levels are packed downwards into int32, so that a column of `qweight` (words of inputs, outputs) is a row of the weight, and
zero points along the outputs. Version 1 of the format stores zero points less one. With act-order, `g_idx` says
which group an input belongs to; without, groups are neighbours. Source: `dequant_gptq` of the reference converter,
`pack` of AutoGPTQ's `qlinear_cuda_old`, and `convert_gptq_v1_to_v2_format` of GPTQModel.
"""

from __future__ import annotations

from typing import Final

from quantcli.formats.errors import UnsupportedError
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.numbers import integers, with_rows
from quantcli.formats.prequantized.scaled import ColumnGroups, Grid, Scaled
from quantcli.formats.prequantized.strips import packed_across, packed_down, turned_floats
from quantcli.formats.tensor import Tensor
from quantcli.kernels.types import TYPES

WORDS: Final = ("I32",)
SCALES: Final = ("F16", "BF16", "F32")
_BITS: Final = (2, 3, 4, 8)
_ZERO_OFFSETS: Final = {"gptq": 1, "gptq_v2": 0}
"""By `checkpoint_format`, what is to be added to a stored zero point."""


def take(companions: Companions) -> None:
    """Every module that has a `qweight`."""
    layout = companions.setting("checkpoint_format", str, "gptq")
    if layout not in _ZERO_OFFSETS:
        raise UnsupportedError(
            f"config.json: GPTQ in the layout {layout!r} is not supported, only {' and '.join(_ZERO_OFFSETS)}",
            hint="Use the original checkpoint, or one that was saved for other kernels.",
        )
    # GPTQModel names modules with settings of their own in `dynamic`; the tensors say theirs.
    bits = None if companions.config.get("dynamic") else companions.setting("bits", int)
    for stem in companions.stems(".qweight"):
        with companions.module(stem):
            companions.put(f"{stem}.qweight", _weight(companions, stem, bits, _ZERO_OFFSETS[layout]))


def _weight(companions: Companions, stem: str, expected_bits: int | None, zero_offset: int) -> Tensor:
    levels = companions.take(f"{stem}.qweight", WORDS, 2)
    zeros = companions.take(f"{stem}.qzeros", WORDS, 2)
    scales = companions.take(f"{stem}.scales", SCALES, 2)
    order = companions.find(f"{stem}.g_idx")
    if order is None and companions.setting("desc_act", bool, False):
        raise ValueError(f"{stem}.g_idx is missing, where the quantization_config says desc_act")
    outputs, groups = levels.shape[1], scales.shape[0]
    bits = zeros.shape[1] * 32 // max(1, outputs)
    if bits not in _BITS or zeros.shape != (groups, outputs * bits // 32) or scales.shape[1] != outputs:
        raise ValueError(
            f"qweight {list(levels.shape)}, qzeros {list(zeros.shape)} and scales {list(scales.shape)} do not fit together"
        )
    if expected_bits not in (None, bits):
        raise ValueError(f"{bits} bits, where the quantization_config says {expected_bits}")
    inputs = levels.shape[0] * 32 // bits
    width = -(-inputs // max(1, groups))
    if levels.shape[0] * 32 % bits or not inputs or (-(-inputs // max(1, width)) != groups and order is None):
        raise ValueError(f"{groups} groups do not fit {inputs} inputs")
    if order is not None and (order.type.name not in ("I32", "I64") or order.shape != (inputs,)):
        raise ValueError(f"g_idx is {order.type.name} {list(order.shape)}, expected I32 [{inputs}]")
    columns = None if order is None else ColumnGroups(with_rows(order, inputs))
    cache = companions.cache
    return Scaled(
        f"{stem}.weight",
        (outputs, inputs),
        TYPES["F32"],
        f"GPTQ {bits}-bit",
        packed_down(levels, bits, inputs, integers(bits), cache),
        Grid(turned_floats(scales, cache), outputs, 1, width, columns),
        Grid(packed_across(zeros, bits, integers(bits, -zero_offset), cache), outputs, 1, width, columns),
    )
