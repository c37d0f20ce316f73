"""torchao, as it writes safetensors: the inner tensors of a quantized weight under names of their own.

`X._weight_qdata` with `X._weight_scale` and often `X._weight_zero_point`:

    Float8Tensor, Int8Tensor, IntxUnpackedToInt8Tensor   one value in a byte
    Int4Tensor                                           two codes in a byte, the first in the lower half; scales and zero
                                                         points are (groups, outputs), and the zero point is a float that is
                                                         added after scaling

Inputs may be multiplied by `X._weight_act_pre_scale`. Here the columns of the weight are multiplied instead. Layouts for
one kind of hardware are not supported. Source: `torchao.prototype.safetensors` and the classes named,
`int4_row_quantize_zp` and `pack_int4` of FBGEMM.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Final

from quantcli.core.block_types import TYPES
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.fp8 import WEIGHTS, scaled_bytes
from quantcli.formats.prequantized.numbers import FLOATS, INTEGERS, SIGNED_FOUR_BITS, Packed
from quantcli.formats.prequantized.scaled import Decoded, Grid, Shifted, scale_grid, smoothed
from quantcli.formats.prequantized.transposed import transposed_floats
from quantcli.tensors.tensor import Tensor

_BITS: Final = 4
_PLAIN: Final = ("F32", "BF16", "F16", "F64")
"""The types of scales. FP8 scales are those of MXTensor and NVFP4Tensor, whose order the tensors do not show."""

_OF_ACTIVATIONS: Final = ("._weight_act_quant_scale", "._weight_act_quant_zero_point", "._weight_act_per_tensor_scale")


def take(companions: Companions) -> None:
    """Dequantize every weight that has `qdata`."""
    for stem in companions.stems("._weight_qdata"):
        with companions.module(stem):
            place = f"{stem}._weight_qdata"
            codes = companions.take(place, ("I8", "U8", *WEIGHTS))
            scales = companions.take(f"{stem}._weight_scale", _PLAIN)
            zeros = companions.find(f"{stem}._weight_zero_point")
            weight = _weight(f"{stem}.weight", codes, scales, zeros, companions)
            factors = companions.find(f"{stem}._weight_act_pre_scale")
            companions.put(place, weight if factors is None else smoothed(weight, factors))
    companions.drop(*_OF_ACTIVATIONS)


def _weight(name: str, codes: Tensor, scales: Tensor, zeros: Tensor | None, companions: Companions) -> Decoded:
    if len(codes.shape) < 2:
        raise ValueError(f"the shape {list(codes.shape)} is not that of a matrix")
    if zeros is not None and zeros.type.name in FLOATS:
        return _four_bits(name, codes, scales, zeros, companions)
    if zeros is not None and zeros.type.name not in INTEGERS:
        raise ValueError(f"the zero points are {zeros.type.name}")
    kind = "FP8" if codes.type.name in WEIGHTS else "int8"
    grid = scale_grid(scales, codes.shape)
    weight = scaled_bytes(codes, grid, f"torchao {kind}", None if zeros is None else scale_grid(zeros, codes.shape))
    return replace(weight, name=name)


def _four_bits(name: str, codes: Tensor, scales: Tensor, zeros: Tensor, companions: Companions) -> Decoded:
    outputs, inputs = codes.shape[-2], codes.shape[-1] * 2
    groups = scales.shape[0] if scales.shape else 0
    shapes = scales.shape, zeros.shape, len(codes.shape)
    if shapes != ((groups, outputs), (groups, outputs), 2) or not groups or inputs % groups:
        raise ValueError(
            f"qdata {list(codes.shape)}, scale {list(scales.shape)} and zero_point {list(zeros.shape)} do not fit together"
        )
    grids = (Grid(transposed_floats(source, companions.cache), outputs, 1, inputs // groups) for source in (scales, zeros))
    unpacked = Packed(codes, _BITS, inputs, SIGNED_FOUR_BITS)
    return Shifted(name, (outputs, inputs), TYPES["F32"], "torchao int4", unpacked, *grids)


METHODS: Final = MappingProxyType({"torchao": take})
