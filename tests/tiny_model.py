"""GGUF files of the tiny models in tests/golden/logit_cases.py, without a tokenizer, since tokens are given."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from tiny_checkpoint import write_checkpoint

from quantcli.architectures.loader import find_architecture
from quantcli.architectures.transforms import as_float32
from quantcli.core.block_types import TYPES
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.gguf.spec import Metadata, string, u32
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.kernels.rows import quantize
from quantcli.tensors.tensor import TensorInfo

ARCHITECTURES = Path(__file__).parent / "golden/architectures"
LAYER = re.compile(r"\.(layers|h|blocks)\.(\d+)\.")

PROMPT = np.random.PCG64(11).random_raw(24) % 500 + 3
"""Token ids that every tiny model reads first."""


def with_layers(tensors: dict[str, Any], layers: int) -> dict[str, Any]:
    """As many layers, those beyond the first again like the last."""
    found = [int(match[2]) for name in tensors if (match := LAYER.search(name))]
    last = max(found)
    more = {
        LAYER.sub(rf".\g<1>.{layer}.", name): entry
        for layer in range(last + 1, layers)
        for name, entry in tensors.items()
        if (match := LAYER.search(name)) and int(match[2]) == last
    }
    return {**tensors, **more}


def write_model(
    place: Path, checkpoint: str, config: dict[str, Any], layers: int | None, type_name: str, more: Metadata | None = None
) -> Path:
    """`place/model.gguf`: a checkpoint, changed, converted, its matrices quantized where their rows allow it."""
    description = json.loads((ARCHITECTURES / f"{checkpoint}.json").read_text())["checkpoint"]
    description["config"] |= config
    if layers is not None:
        description["tensors"] = with_layers(description["tensors"], layers)
    with open_checkpoint(write_checkpoint(place, description)) as opened:
        write_converted(opened, place / "model.gguf", type_name, more or {})
    return place / "model.gguf"


def write_converted(checkpoint: Any, target: Path, type_name: str = "F32", more: Metadata = MappingProxyType({})) -> None:
    """A checkpoint's tensors in F32, or in another type those of two axes and more that are no norms and no routers.

    `more` is added to the metadata.
    """
    architecture, kind = find_architecture(checkpoint.config), TYPES[type_name]
    tensors = [as_float32(tensor) for tensor in architecture.tensors(checkpoint.tensors, checkpoint.config)]
    vocabulary = next(tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
    metadata = architecture.early_metadata(checkpoint.config) | architecture.metadata(checkpoint.config, 0)
    metadata |= {"tokenizer.ggml.model": string("none"), f"{architecture.gguf}.vocab_size": u32(vocabulary), **more}

    def packed(tensor: TensorInfo) -> bool:
        plain = len(tensor.shape) < 2 or re.search(r"norm|ffn_gate_inp|conv|bias|position|token_types", tensor.name)
        return type_name != "F32" and not plain and tensor.row_length % kind.block_length == 0

    infos = [TensorInfo(tensor.name, tensor.shape, kind if packed(tensor) else TYPES["F32"]) for tensor in tensors]
    with GGUFWriter(target, metadata, infos) as writer:
        for index, (tensor, info) in enumerate(zip(tensors, infos, strict=True)):
            numbers = tensor.load().reshape(tensor.rows, tensor.row_length)
            data = numbers.view(np.uint8) if info.type is TYPES["F32"] else quantize(numbers, type_name)
            writer.write(index, 0, data.reshape(-1))
