"""Names and shapes that mlx-lm gives to what it converts, quantized or not, as the architectures know them.

Stacks of experts lie under `switch_mlp`, and the kernels of depthwise convolutions, which are (channels, 1, width) in
PyTorch, are (channels, width, 1), the same numbers in the same order. Source: `sanitize` of mlx-lm's models, `SwitchGLU`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quantcli.core.errors import ModelError
from quantcli.tensors.tensor import StoredTensor, Tensor


def published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names and in the shapes of PyTorch. Those of other checkpoints are left alone.

    Raises:
        ModelError: if a tensor is there under both names.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        given = name.replace(".switch_mlp.", ".experts.")
        if given != name and given in tensors:
            raise ModelError(f"the checkpoint holds {given} twice, also as {name}")
        found[given] = _in_channels(tensor if given == name else replace(tensor, name=given))
    return found


def _in_channels(tensor: Tensor) -> Tensor:
    """A depthwise kernel with its width last."""
    shape = tensor.shape
    is_kernel = tensor.name.endswith((".conv1d.weight", ".conv.weight")) and isinstance(tensor, StoredTensor)
    if not is_kernel or len(shape) != 3 or shape[2] != 1 or shape[1] == 1:
        return tensor
    return replace(tensor, shape=(shape[0], 1, shape[1]))
