"""GPTQ: `qweight`, `qzeros`, `scales` and `g_idx` of each linear layer, 2, 3, 4 or 8 bits.

    qweight   (words of inputs, outputs), codes packed along the inputs: a column is a row of the weight
    qzeros    (groups, words of outputs), zero points packed along the outputs; in version 1 of the format minus one
    scales    (groups, outputs)
    g_idx     (inputs,), with act-order the group of each input; without it, groups are contiguous

Words have 32 bits, or 8, 16 or 64 with another `pack_dtype`. Source: `dequant_gptq` of llama.cpp's converter, `pack` of
AutoGPTQ's `qlinear_cuda_old`, `PackableQuantLinear`, `convert_gptq_v1_to_v2_format` and `QuantizeConfig` of GPTQModel.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from quantcli.core.block_types import TYPES
from quantcli.core.errors import UnsupportedError, shown
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.numbers import integers, with_rows
from quantcli.formats.prequantized.scaled import ColumnGroups, Grid, Scaled, group_width
from quantcli.formats.prequantized.transposed import packed_along_columns, packed_along_rows, transposed_floats
from quantcli.tensors.tensor import Tensor

_WORDS: Final = ("I32", "I64", "I16", "I8")
SCALES: Final = ("F16", "BF16", "F32")
_BITS: Final = (2, 3, 4, 8)
_ZERO_OFFSETS: Final = {"gptq": 1, "gptq_v2": 0}
"""`checkpoint_format` -> what is added to a stored zero point."""


_ELSEWHERE: Final = {
    "rotation": "activations are rotated during inference",
    "adapter": "an adapter is part of the model",
    "is_marlin_format": "its words are in a GPU-specific order",
}
"""Options that the tensors do not show -> why they are not supported."""


def take(companions: Companions) -> None:
    """Dequantize every module that has a `qweight`."""
    layouts = [companions.setting(key, str) for key in ("checkpoint_format", "format")]
    layout = next((layout for layout in layouts if layout is not None), "gptq")
    foreign = next((layout for layout in layouts if layout not in (None, *_ZERO_OFFSETS)), None)
    if foreign is not None:
        raise UnsupportedError(
            f"config.json: GPTQ in the layout {shown(foreign)} is not supported, only {' and '.join(_ZERO_OFFSETS)}",
            hint="Use the original checkpoint, or one that was saved for other kernels.",
        )
    for option, what in _ELSEWHERE.items():
        if companions.config.get(option):
            value = shown(companions.config[option])
            raise UnsupportedError(
                f"config.json: GPTQ with {option} {value} is not supported: {what}", hint="Use the original checkpoint."
            )
    # GPTQModel lists modules with other settings in `dynamic`. Their bits follow from their tensors.
    bits = None if companions.config.get("dynamic") else companions.setting("bits", int)
    take_modules(companions, bits, _ZERO_OFFSETS[layout])


def take_modules(companions: Companions, bits: int | None, zero_offset: int) -> None:
    """As `take`, with `bits`, or None for those that follow from the tensors, and `zero_offset` added to zero points."""
    group = companions.setting("group_size", int)
    for stem in companions.stems(".qweight"):
        with companions.module(stem):
            companions.put(f"{stem}.qweight", _weight(companions, stem, bits, zero_offset, group))


def _weight(
    companions: Companions, stem: str, expected_bits: int | None, zero_offset: int, given_group: int | None
) -> Tensor:
    codes = companions.take(f"{stem}.qweight", _WORDS, 2)
    zeros = companions.take(f"{stem}.qzeros", (codes.type.name,), 2)
    scales = companions.take(f"{stem}.scales", SCALES, 2)
    order = companions.find(f"{stem}.g_idx")
    if order is None and companions.setting("desc_act", bool, False):
        raise ValueError(f"{stem}.g_idx is missing, where the quantization_config says desc_act")
    outputs, groups, word = codes.shape[1], scales.shape[0], 8 * codes.type.block_bytes
    bits = zeros.shape[1] * word // max(1, outputs)
    fits = zeros.shape == (groups, outputs * bits // word) and scales.shape[1] == outputs
    if bits not in _BITS or not fits or (word % bits and word != 32):
        raise ValueError(
            f"qweight {list(codes.shape)}, qzeros {list(zeros.shape)} and scales {list(scales.shape)} do not fit together"
        )
    if expected_bits not in (None, bits):
        raise ValueError(f"{bits} bits, where the quantization_config says {expected_bits}")
    inputs = codes.shape[0] * word // bits
    width = group_width(inputs, groups, given_group)
    if codes.shape[0] * word % bits or not inputs or not groups or (width is None and order is None):
        raise ValueError(f"{groups} groups do not fit {inputs} inputs")
    if order is not None and (order.type.name not in ("I32", "I64") or order.shape != (inputs,)):
        raise ValueError(f"g_idx is {order.type.name} {list(order.shape)}, expected I32 [{inputs}]")
    columns = None if order is None else ColumnGroups(with_rows(order, inputs))
    cache, width = companions.cache, width or 1  # the width is not used with `columns`
    return Scaled(
        f"{stem}.weight",
        (outputs, inputs),
        TYPES["F32"],
        f"GPTQ {bits}-bit",
        packed_along_columns(codes, bits, inputs, integers(bits), cache),
        Grid(transposed_floats(scales, cache), outputs, 1, width, columns),
        Grid(packed_along_rows(zeros, bits, integers(bits, -zero_offset), cache), outputs, 1, width, columns),
    )


METHODS: Final = MappingProxyType({"gptq": take})
