"""Map the names and shapes of mlx-lm's checkpoints, quantized or not, to those of PyTorch.

Stacked experts are named `switch_mlp`. Kernels of depthwise convolutions are (channels, width, 1) instead of PyTorch's
(channels, 1, width), with the same numbers in the same order. Source: `sanitize` of mlx-lm's models, `SwitchGLU`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quantcli.core.errors import ModelError
from quantcli.tensors.tensor import StoredTensor, Tensor


def with_pytorch_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint with PyTorch's names and shapes. Those of other checkpoints than mlx-lm's stay.

    Raises:
        ModelError: if a tensor exists under both names.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        given = name.replace(".switch_mlp.", ".experts.")
        if given != name and given in tensors:
            raise ModelError(f"the checkpoint has {given} twice, also as {name}")
        found[given] = _in_channels(tensor if given == name else replace(tensor, name=given))
    return found


def _in_channels(tensor: Tensor) -> Tensor:
    """The tensor; if it is the kernel of a depthwise convolution, with its width last."""
    shape = tensor.shape
    is_kernel = tensor.name.endswith((".conv1d.weight", ".conv.weight")) and isinstance(tensor, StoredTensor)
    if not is_kernel or len(shape) != 3 or shape[2] != 1 or shape[1] == 1:
        return tensor
    return replace(tensor, shape=(shape[0], 1, shape[1]))
