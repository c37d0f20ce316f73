"""Checkpoints of a few numbers, what is read of them, and how they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.core.errors import FormatError, QuantcliError
from quantcli.formats.checkpoint.checkpoint import Checkpoint, open_checkpoint


def safetensors(path: Path, **tensors: list[float]) -> Path:
    """A file of F32 vectors."""
    header, data = {}, b""
    for name, values in tensors.items():
        encoded = np.array(values, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [len(data), len(data) + len(encoded)]}
        data += encoded
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def index(directory: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> None:
    (directory / name).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def values(checkpoint: Checkpoint) -> dict[str, list[float]]:
    return {name: tensor.load().tolist() for name, tensor in checkpoint.tensors.items()}


def refusal(path: Path, error: type[QuantcliError] = FormatError) -> str:
    with pytest.raises(error) as caught:
        open_checkpoint(path)
    assert type(caught.value) is error
    assert "\n" not in caught.value.message
    return caught.value.message
