"""TensorRT Model Optimizer (`modelopt`): FP8, MXFP8, MXFP4, NVFP4, int8 and int4.

`X.weight` with `X.weight_scale`:

    FP8, int8      a scale for the tensor, each row, or each block of 128 x 128
    MXFP8, MXFP4   an exponent (E8M0 as U8) for each 32 weights
    NVFP4          an E4M3 scale for each 16 weights, and a float32 scale for the tensor, `X.weight_scale_2`
    int4           a scale for each group, two rows in a byte

With AWQ and SmoothQuant the inputs of a layer are multiplied by `X.pre_quant_scale`. Here the columns of the weight are
multiplied instead. Source: `to_quantized_weight`, `pack_int4_in_uint8` and `convert_hf_quant_config_format` of modelopt,
`dequant_model` and `_nvfp4_pack` of llama.cpp's converter.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Final

from quantcli.core.block_types import TYPES
from quantcli.core.errors import UnsupportedError, shown
from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.fp4 import multiplied, nvfp4
from quantcli.formats.prequantized.fp8 import UNUSED, USUAL_BLOCK, WEIGHTS, find_scales, scaled_bytes
from quantcli.formats.prequantized.mxfp4 import MXFP4, repacked
from quantcli.formats.prequantized.numbers import SCALES, SIGNED_FOUR_BITS, PackedRows, exponents
from quantcli.formats.prequantized.scaled import Decoded, Scaled, scale_grid, smoothed
from quantcli.tensors.tensor import StoredTensor, Tensor

_TITLE: Final = "modelopt"
_BYTES: Final = ("I8", "U8")
_FOREIGN: Final = {
    "NVFP4_SVD": "its weights have a low-rank part",
    "W4A8_AWQ": "its int4 weights have a second scale",
}
"""Algorithms that are not supported -> the reason."""


def take(companions: Companions) -> None:
    """Dequantize every weight that has a `weight_scale`."""
    algorithm = companions.setting("quant_algo", str)
    if algorithm in _FOREIGN:
        raise UnsupportedError(
            f"config.json: {_TITLE} with quant_algo {shown(algorithm)} is not supported: {_FOREIGN[algorithm]}",
            hint="Use the original checkpoint.",
        )
    group = companions.setting("group_size", int)
    for name, tensor in companions.tensors.items():
        is_scale = name.removesuffix("_scale") in companions.tensors and name.endswith("_scale")
        is_weight = tensor.type.name in WEIGHTS or (tensor.type.name in _BYTES and find_scales(companions, name))
        if is_weight and not is_scale:
            with companions.module(name):
                weight = _weight(companions, name, group)
                stem = name.removesuffix(".weight")
                factors = companions.find(f"{stem}.pre_quant_scale")
                if f"{stem}.svdquant_lora_a" in companions.tensors:
                    raise ValueError("it has a low-rank part (svdquant_lora_a), which is not supported")
                companions.put(name, weight if factors is None else smoothed(weight, factors))
    companions.drop(*UNUSED, ".k_proj.k_bias", ".v_proj.v_bias")


def _weight(companions: Companions, name: str, group: int | None) -> Decoded:
    weight = companions.take(name, (*_BYTES, *WEIGHTS))
    if len(weight.shape) < 2 or not weight.size:
        raise ValueError(f"the shape {list(weight.shape)} is not that of a matrix")
    whole = companions.find(f"{name}_scale_2")
    if weight.type.name == "U8":
        return _packed(companions, name, weight, whole, group)
    if whole is not None:
        raise ValueError(f"{name}_scale_2 is there, which {weight.type.name} weights do not have")
    scales = companions.take(find_scales(companions, name) or f"{name}_scale", SCALES)
    grid = scale_grid(_of_blocks(exponents(scales)), weight.shape, USUAL_BLOCK, group)
    return scaled_bytes(weight, grid, f"{_TITLE} {'int8' if weight.type.name == 'I8' else 'FP8'}")


def _of_blocks(scales: Tensor) -> Tensor:
    """Scales of blocks without the axes of length 1 for the rows and columns of each block."""
    if len(scales.shape) == 4 and scales.shape[1] == scales.shape[3] == 1 and isinstance(scales, StoredTensor):
        return replace(scales, shape=(scales.shape[0], scales.shape[2]))
    return scales


def _packed(companions: Companions, name: str, codes: Tensor, whole: Tensor | None, group: int | None) -> Decoded:
    """A weight of four bits. Its format follows from its scales."""
    scales = companions.take(find_scales(companions, name) or f"{name}_scale", SCALES)
    if whole is not None:
        if whole.type.name != "F32" or scales.type.name != "F8_E4M3":
            raise ValueError(f"scales {scales.type.name} and {whole.type.name}, expected F8_E4M3 and F32")
        return nvfp4(name, codes, scales, whole, _TITLE, multiplied)
    if scales.type.name in ("U8", "F8_E8M0"):
        shape = (*codes.shape[:-1], codes.shape[-1] * 2)
        if scales.shape != (*shape[:-1], shape[-1] // MXFP4.block_length):
            raise ValueError(f"scales of shape {list(scales.shape)} do not fit a weight of shape {list(shape)}")
        return repacked(name, shape, codes, scales)
    shape = (codes.shape[0] * 2, codes.shape[1])
    if len(codes.shape) != 2 or scales.shape[:1] != shape[:1]:
        raise ValueError(f"scales of shape {list(scales.shape)} do not fit int4 weights of shape {list(shape)}")
    unpacked = PackedRows(codes, 4, SIGNED_FOUR_BITS)
    return Scaled(name, shape, TYPES["F32"], f"{_TITLE} int4", unpacked, scale_grid(scales, shape, None, group))


METHODS: Final = MappingProxyType({"modelopt": take})
