"""TensorRT Model Optimizer (`modelopt`): FP8 under a scale for all of a tensor or for each row, and NVFP4.

NVFP4 keeps two codes a byte in `X.weight`, an E4M3 float for each 16 weights in `X.weight_scale` and a float32 for all of
them in `X.weight_scale_2`. Source: `dequant_model` and `_nvfp4_pack` of the reference converter, modelopt's `NVFP4QTensor`.
"""

from __future__ import annotations

from quantcli.formats.prequantized.companions import Companions
from quantcli.formats.prequantized.fp4 import multiplied, nvfp4
from quantcli.formats.prequantized.fp8 import UNUSED, WEIGHTS, put_scaled


def take(companions: Companions) -> None:
    """Every weight in FP4 or FP8."""
    for stem in companions.stems("_scale_2"):
        with companions.module(stem):
            codes = companions.take(stem, ("U8",), 2)
            scales = companions.take(f"{stem}_scale", ("F8_E4M3",), 2)
            whole = companions.take(f"{stem}_scale_2", ("F32",))
            companions.put(stem, nvfp4(stem, codes, scales, whole, "modelopt", multiplied))
    for name in [name for name, tensor in companions.tensors.items() if tensor.type.name in WEIGHTS]:
        if companions.is_left(name):
            with companions.module(name):
                put_scaled(companions, name, None, "modelopt FP8")
    companions.drop(*UNUSED)
