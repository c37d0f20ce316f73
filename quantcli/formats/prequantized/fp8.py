"""FP8 weights, with a scale for each tensor, row, group of columns, or block of 128 x 128.

Methods `fp8`, `mxfp8` and `fbgemm_fp8`, and FP8 tensors in checkpoints without a method. The names of scales:

    weight_scale_inv, since V4 scale   DeepSeek; weights are multiplied by `weight_scale_inv` too, in spite of its name
    weight_scale                       vLLM and transformers
    qscale_weight                      Mistral

Scales are floats, among them powers of two as F8_E8M0, or such exponents as U8. Experts may be FP4 instead, two codes in a
byte of a tensor of type I8. Source: `dequant_simple` of llama.cpp's converter, `finegrained_fp8`,
`quantizer_finegrained_fp8`, `quantizer_fbgemm_fp8` and `FbgemmFp8Llama4TextExperts` of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import MappingProxyType
from typing import Final

from quantcli.core.block_types import TYPES
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.mxfp4 import MXFP4, repacked
from quantcli.formats.prequantized.numbers import E2M1, FLOAT_TABLES, FLOATS, SCALES, Packed, Plain, exponents
from quantcli.formats.prequantized.scaled import Grid, Scaled, column_grid, scale_grid
from quantcli.tensors.tensor import Tensor

WEIGHTS: Final = tuple(name for name in FLOAT_TABLES if name != "F8_E8M0")
"""The FP8 types of weights. F8_E8M0 is left out: it has no sign, and is for scales."""

UNUSED: Final = (
    ".input_scale", ".input_scale_ub", ".output_scale", "activation_scale", ".qscale_act", ".k_scale", ".v_scale",
    ".q_scale", ".kv_scale", ".prob_output_scale", ".weight_scale_inv_2",
)  # fmt: skip
"""Suffixes of scales of activations, which weights do not depend on."""

_SCALE_NAMES: Final = (("", "_scale_inv"), ("", "_scale"), ("weight", "qscale_weight"), (".weight", ".scale"))
"""The suffix of a weight's name, and what replaces it in the name of its scales."""


USUAL_BLOCK: Final = (128, 128)
"""The default size of a block that shares a scale."""

_FOUR_BIT: Final = "I8"
"""The type of tensors with two FP4 codes in a byte."""


def take(companions: Companions) -> None:
    """Dequantize every weight in FP8 and, if it has scales, in FP4."""
    block = block_size(companions)
    for name, tensor in companions.tensors.items():
        if tensor.type.name in WEIGHTS:
            with companions.module(name):
                put_scaled(companions, name, block, "FP8", SCALES)
        elif tensor.type.name == _FOUR_BIT and find_scales(companions, name) is not None:
            with companions.module(name):
                companions.put(name, _four_bit(companions, name))
    companions.drop(*UNUSED)


def _four_bit(companions: Companions, name: str) -> Tensor:
    codes = companions.take(name, (_FOUR_BIT,))
    if len(codes.shape) < 2:
        raise ValueError(f"the shape {list(codes.shape)} is not that of a matrix")
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    scales = exponents(companions.take(find_scales(companions, name) or "", SCALES))
    if scales.type.name == "F8_E8M0" and scales.shape == (*shape[:-1], shape[-1] / MXFP4.block_length):
        return repacked(name, shape, codes, scales)
    unpacked = Packed(codes, 4, shape[-1], E2M1)
    return Scaled(name, shape, TYPES["F32"], "FP4", unpacked, scale_grid(scales, shape))


def take_fbgemm(companions: Companions) -> None:
    """Dequantize every weight in FP8. Stacked experts are transposed and have a scale for each column."""
    for name, tensor in companions.tensors.items():
        if tensor.type.name in WEIGHTS:
            with companions.module(name):
                put_scaled(companions, name, None, "FP8", FLOATS, column_grid if len(tensor.shape) > 2 else scale_grid)
    companions.drop(*UNUSED)


def put_scaled(
    companions: Companions,
    name: str,
    block: tuple[int, int] | None,
    origin: str,
    kinds: Collection[str],
    grid: Callable[[Tensor, tuple[int, ...], tuple[int, int] | None], Grid] = scale_grid,
) -> None:
    """Put the dequantized weight `name`, FP8 or int8, with scales of one of the types `kinds`, laid out by `grid`.

    Raises:
        ValueError: if it has no scales, or they do not fit.
    """
    scales_name = find_scales(companions, name)
    if scales_name is None:
        raise ValueError("its scales are missing")
    weight = companions.tensors[name]
    if len(weight.shape) < 2:
        raise ValueError(f"the shape {list(weight.shape)} is not that of a matrix")
    scales = grid(exponents(companions.take(scales_name, kinds)), weight.shape, block)
    companions.put(name, scaled_bytes(weight, scales, origin))


def scaled_bytes(weight: Tensor, scales: Grid | None, origin: str, zeros: Grid | None = None) -> Scaled:
    """A weight in FP8 or int8 with scales, and for integers perhaps zero points."""
    table = FLOAT_TABLES.get(weight.type.name)
    codes = Plain(weight) if table is None else Packed(weight, 8, weight.row_length, table)
    return Scaled(weight.name, weight.shape, TYPES["F32"], origin, codes, scales, zeros)


def find_scales(companions: Companions, name: str) -> str | None:
    """The name of the tensor with the scales of a weight; None if there is none."""
    names = (name.removesuffix(end) + scale_end for end, scale_end in _SCALE_NAMES if name.endswith(end))
    return next((scales for scales in names if scales in companions.tensors), None)


def block_size(companions: Companions) -> tuple[int, int] | None:
    """The size of a block that shares a scale, by the configuration; by default `USUAL_BLOCK`, None if it is null."""
    if "weight_block_size" not in companions.config:
        return USUAL_BLOCK
    sizes = companions.setting("weight_block_size", list)
    if sizes is None:
        return None
    if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise companions.misconfigured("weight_block_size", sizes, "two sizes")
    return sizes[0], sizes[1]


def take_unscaled(companions: Companions) -> None:
    """Convert FP8 tensors of a checkpoint without a quantization_config, which have no scales."""
    for name, tensor in companions.tensors.items():
        if tensor.type.name in WEIGHTS:
            with companions.module(name):
                if find_scales(companions, name) is not None:
                    raise ValueError(
                        "it has scales, but config.json has no quantization_config"
                    )
                companions.put(name, scaled_bytes(tensor, None, "FP8"))


METHODS: Final = MappingProxyType({"fbgemm_fp8": take_fbgemm, "fp8": take, "mxfp8": take})
