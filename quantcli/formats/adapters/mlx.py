"""LoRA adapters as mlx-lm saves them: adapters.safetensors, and its own adapter_config.json.

              X.lora_a              X.lora_b
    linear    (in, rank)            (rank, out)             the transposes of peft's matrices
    embedding (tokens, rank)        (rank, width)
    experts   (experts, rank, in)   (experts, out, rank)    stacks of peft's matrices

DoRA has `X.m`. With `fine_tune_type` "full" the file has whole weights.

Source: `tuner/lora.py`, `tuner/dora.py` and `lora.py` of mlx-lm 0.32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from quantcli.core.errors import FormatError, UnsupportedError
from quantcli.core.listing import listed
from quantcli.formats.adapters.low_rank import Adapter, LowRank, number
from quantcli.tensors.strided import StridedTensor
from quantcli.tensors.tensor import StoredTensor, Tensor

WEIGHTS: Final = ("adapters.safetensors",)

_PART: Final = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)")
_STACKED: Final = re.compile(r"(?P<front>.+)\.switch_mlp\.(?P<name>\w+)")
"""The stacked experts of a layer, which are separate tensors in checkpoints."""

_KINDS: Final = ("lora", "dora", "full")


def is_mlx_config(config: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is mlx-lm's. peft's has `peft_type`."""
    return "peft_type" not in config and ("fine_tune_type" in config or "lora_parameters" in config)


def assemble(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """The adapter of a directory, from its configuration and its tensors.

    Raises:
        FormatError: if its tensors are inconsistent, or the configuration has no scale.
        UnsupportedError: if it is not LoRA, DoRA or full fine-tuning.
    """
    kind = config.get("fine_tune_type", "lora")
    if kind not in _KINDS:
        raise UnsupportedError(f"{directory}: fine_tune_type is {kind!r}, expected one of {', '.join(_KINDS)}")
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = None if kind == "full" else _PART.fullmatch(name)
        if match:
            parts.setdefault(match["module"], {})[match["part"]] = tensor
        else:
            whole[name] = tensor
    scale = _scale(directory, config) if parts else 0.0
    pairs: dict[str, LowRank] = {}
    problems: list[str] = []
    for module, held in parts.items():
        try:
            pairs |= {pair.name: pair for pair in _pairs(module, held, scale)}
        except ValueError as error:
            problems.append(f"{module}: {error}")
    if not pairs and not whole and not problems:
        problems.append("no tensors in it")
    if problems:
        raise FormatError(directory, f"a faulty adapter: {listed(problems, separator='; ')}")
    rank = next((pair.rank for pair in pairs.values()), 1)
    return Adapter(directory, config, pairs, whole, {}, scale * rank)


def _scale(directory: Path, config: Mapping[str, Any]) -> float:
    parameters = config.get("lora_parameters")
    given = parameters.get("scale") if isinstance(parameters, Mapping) else None
    scale = number(given)
    if scale is None:
        raise FormatError(directory, f"the scale in lora_parameters is {given!r}, expected a number")
    return scale


def _pairs(module: str, held: Mapping[str, Tensor], scale: float) -> Iterator[LowRank]:
    """The pairs of a layer: one, or one for each of its stacked experts.

    Raises:
        ValueError: if its tensors are inconsistent.
    """
    absent = [name for name in ("lora_a", "lora_b") if name not in held]
    if absent:
        raise ValueError(f"no {' and no '.join(absent)}")
    a, b = held["lora_a"], held["lora_b"]
    shapes = f"matrices {list(a.shape)} and {list(b.shape)}"
    if len(a.shape) == len(b.shape) == 2 and a.shape[1] == b.shape[0] and a.size and b.size:
        left, right = _transposed(a), _transposed(b)
        yield LowRank(f"{module}.weight", (b.shape[1], a.shape[0]), a.type, left, right, scale, magnitude=held.get("m"))
        return
    stacked = _STACKED.fullmatch(module)
    if stacked is None:
        raise ValueError(f"{shapes}, expected [in, rank] and [rank, out]")
    if len(a.shape) != 3 or len(b.shape) != 3 or a.shape[::2] != (b.shape[0], a.shape[2]) or a.shape[1] != b.shape[2]:
        raise ValueError(f"{shapes}, expected [experts, rank, in] and [experts, out, rank]")
    if not a.size or not b.size:
        raise ValueError(f"{shapes}, of which one is empty")
    for expert in range(a.shape[0]):
        name = f"{stacked['front']}.experts.{expert}.{stacked['name']}.weight"
        yield LowRank(name, (b.shape[1], a.shape[2]), a.type, _member(a, expert), _member(b, expert), scale)


def _transposed(tensor: Tensor) -> Tensor:
    """The transpose of a stored matrix."""
    stored = _stored(tensor)
    item = stored.type.block_bytes
    strides = (item, stored.shape[1] * item)
    return StridedTensor(stored.name, stored.shape[::-1], stored.type, stored.file, stored.offset, strides)


def _member(tensor: Tensor, index: int) -> Tensor:
    """Matrix `index` of a stored stack of matrices."""
    stored = _stored(tensor)
    rows, columns = stored.shape[1:]
    offset = stored.offset + index * rows * columns * stored.type.block_bytes
    return StoredTensor(f"{stored.name}[{index}]", (rows, columns), stored.type, stored.file, offset)


def _stored(tensor: Tensor) -> StoredTensor:
    if not isinstance(tensor, StoredTensor) or tensor.type.name not in ("F64", "F32", "F16", "BF16"):
        raise ValueError(f"a matrix stored as {tensor.type.name}, which cannot be computed with")
    return tensor
