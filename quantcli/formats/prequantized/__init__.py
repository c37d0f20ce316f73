"""Checkpoints that are already quantized, seen as ordinary ones.

Each method keeps a weight as several tensors: levels, scales, zero points. `decode` gives a checkpoint in which those are
gone and lazy tensors of the weights are in their place, in F32, or in the GGUF type that holds exactly the same numbers.
Rows are decoded when they are read, so memory does not grow with the model. Only modules that have a method's tensors
are decoded, so that a checkpoint may be quantized in part.

A method is a module here and a row of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from quantcli.core.errors import UnsupportedError, clipped
from quantcli.formats.checkpoint.checkpoint import Checkpoint
from quantcli.formats.prequantized import (
    auto_round,
    awq,
    bitnet,
    bitsandbytes,
    compressed_tensors,
    fp8,
    gptq,
    mlx,
    modelopt,
    mxfp4,
    quark,
    torchao,
)
from quantcli.formats.prequantized.companions import Companions, Method
from quantcli.formats.prequantized.mlx_names import published
from quantcli.formats.prequantized.settings import quantization_config
from quantcli.tensors.tensor import Tensor

METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        "auto-round": auto_round.take,
        "awq": awq.take,
        "bitnet": bitnet.take,
        "bitsandbytes": bitsandbytes.take,
        "compressed-tensors": compressed_tensors.take,
        "fbgemm_fp8": fp8.take_fbgemm,
        "fp8": fp8.take,
        "gptq": gptq.take,
        "intel/auto-round": auto_round.take,
        "metal": mlx.take_metal,
        "mlx": mlx.take,
        "modelopt": modelopt.take,
        "mxfp4": mxfp4.take,
        "mxfp8": fp8.take,
        "quark": quark.take,
        "torchao": torchao.take,
    }
)
"""What decodes a checkpoint, by the `quant_method` of its configuration."""


def decode(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """The tensors of a checkpoint as those of an ordinary one. `config` is its quantization_config, None if it has none.

    Raises:
        UnsupportedError: for a method, or a variant of one, that is not supported.
        ModelError: if the tensors are not as the method has them; the message lists what is wrong.
    """
    companions = Companions(tensors, config or {})
    if config is None:
        fp8.take_unscaled(companions)
        return companions.result("an ordinary checkpoint")
    method = config["quant_method"].lower()
    if method not in METHODS:
        named = clipped(repr(method)[1:-1], 40)
        raise UnsupportedError(
            f"the checkpoint is quantized with {named}, which is not supported, only {', '.join(METHODS)}",
            hint="Use the original checkpoint, in bfloat16, float16 or float32.",
        )
    METHODS[method](companions)
    return companions.result(method)


def decoded_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the tensors of `decode`, under names that architectures know. Close the one it was made of.

    Raises:
        FormatError, ModelError, UnsupportedError: as `quantization_config`, `decode` and `published` do.
    """
    return replace(checkpoint, tensors=published(decode(checkpoint.tensors, quantization_config(checkpoint))))
