"""Quantized checkpoints (GPTQ, AWQ, FP8 ...), dequantized lazily.

A quantization method stores a weight as several tensors: codes (q), scales (s), zero points (z). `decode` replaces these
by lazy tensors of the weights, in F32, or in the GGUF type that holds exactly the same numbers. Rows are dequantized when
they are read, so memory does not grow with the model. Only modules that have a method's tensors are dequantized, so a
checkpoint may be quantized in part.

A method is a module here: it lists its names in a table `METHODS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any, Final

from quantcli.core.errors import UnsupportedError, clipped
from quantcli.formats.checkpoint.checkpoint import Checkpoint
from quantcli.formats.prequantized import fp8
from quantcli.formats.prequantized.companions import Companions, Method
from quantcli.formats.prequantized.mlx_names import with_pytorch_names
from quantcli.formats.prequantized.settings import quantization_config
from quantcli.tensors.tensor import Tensor


def _methods() -> Iterator[tuple[str, Method]]:
    """The rows of every module here that has a table `METHODS`."""
    for module in iter_modules(__path__):
        rows: Mapping[str, Method] = getattr(import_module(f"{__name__}.{module.name}"), "METHODS", {})
        yield from rows.items()


METHODS: Final[Mapping[str, Method]] = MappingProxyType(dict(sorted(_methods())))
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
