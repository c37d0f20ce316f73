"""Quantized checkpoints (GPTQ, AWQ, FP8 ...), dequantized lazily.

A quantization method stores a weight as several tensors: levels (q), scales (s), zero points (z). `decode` replaces these
by lazy tensors of the weights, in F32, or in the GGUF type that holds exactly the same numbers. Rows are dequantized when
they are read, so memory does not grow with the model. Only modules that have a method's tensors are dequantized, so a
checkpoint may be quantized in part.

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
from quantcli.formats.prequantized.mlx_names import with_pytorch_names
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
"""`quant_method` of a configuration -> the function that dequantizes such a checkpoint."""


def decode(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """The tensors of a checkpoint, dequantized. `config` is its quantization_config, None if it has none.

    Raises:
        UnsupportedError: for a method, or a variant of one, that is not supported.
        ModelError: if the tensors do not have the method's layout. The message lists the problems.
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
    """The checkpoint with the tensors of `decode`, under PyTorch's names. Close the checkpoint it was made of.

    Raises:
        FormatError, ModelError, UnsupportedError: as `quantization_config`, `decode` and `with_pytorch_names` do.
    """
    return replace(checkpoint, tensors=with_pytorch_names(decode(checkpoint.tensors, quantization_config(checkpoint))))
