"""Tiny checkpoints that are the same everywhere: a configuration, tensors filled from their names, small side files.

A checkpoint is described by a table that JSON can hold, so the goldens carry the description and the tests make the very
checkpoint again that the reference has converted. Its `integers` are the tensors of I32 that are not random.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOGARITHMS = "F32 logarithms"
"""For a type: F32, and in each row the logarithms of the numbers from 1 on."""

EXPONENTS = "U8 exponents"
"""For a type: U8, any bits but 255, which as F8_E8M0 is no number."""


def tensor_values(name: str, shape: list[int]) -> NDArray[np.float32]:
    """Numbers in [-0.5, 0.5) from a generator seeded with the name; raw PCG64 output is the same in every NumPy."""
    values = ((_raw(name, shape) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)) - np.float32(0.5)
    return values.reshape(shape)


def _raw(name: str, shape: list[int]) -> NDArray[np.uint64]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.PCG64(seed).random_raw(int(np.prod(shape)))


def tensor_bytes(name: str, dtype: str, shape: list[int]) -> bytes:
    """Those numbers as a file has them. Of I32 and U8 any bits, of F8_E4M3 any number."""
    if dtype == LOGARITHMS:
        return np.broadcast_to(np.log(np.arange(1.0, shape[-1] + 1.0)).astype("<f4"), shape).tobytes()
    raw = _raw(name, shape)
    if dtype == "I32":
        return (raw >> np.uint64(32)).astype("<u4").tobytes()
    if dtype in ("U8", EXPONENTS, "F8_E4M3"):
        bits = (raw >> np.uint64(56)).astype(np.uint8)
        if dtype == EXPONENTS:
            return np.where(bits == 255, 127, bits).astype(np.uint8).tobytes()
        return (bits if dtype == "U8" else np.where(bits & 0x7F == 0x7F, 0, bits).astype(np.uint8)).tobytes()
    values = tensor_values(name, shape)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def write_checkpoint(place: Path, description: dict[str, Any]) -> Path:
    """Write `place/NAME/config.json`, `model.safetensors` and the side files; the directory."""
    return _write(place, description, "config.json", "model.safetensors")


def write_adapter(place: Path, description: dict[str, Any]) -> Path:
    """The same for a LoRA adapter: `adapter_config.json` and `adapter_model.safetensors`."""
    return _write(place, description, "adapter_config.json", "adapter_model.safetensors")


def _write(place: Path, description: dict[str, Any], config: str, weights: str) -> Path:
    directory = place / description["directory"]
    directory.mkdir()
    (directory / config).write_text(json.dumps(description["config"], indent=2))
    for name, text in description.get("files", {}).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
    header, data = {}, bytearray()
    integers = description.get("integers", {})
    for name, (dtype, shape) in description["tensors"].items():
        chunk = np.array(integers[name], "<i4").tobytes() if name in integers else tensor_bytes(name, dtype, shape)
        header[name] = {"dtype": dtype.split()[0], "shape": shape, "data_offsets": [len(data), len(data) + len(chunk)]}
        data += chunk
    text = json.dumps(header).encode()
    (directory / weights).write_bytes(len(text).to_bytes(8, "little") + text + data)
    return directory
