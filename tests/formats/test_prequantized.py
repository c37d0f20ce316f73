"""Quantized checkpoints made by the libraries that define the formats, decoded and compared with what those decode."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.formats import columns
from quantcli.formats.prequantized import decode, strips
from quantcli.formats.safetensors import open_safetensors
from quantcli.formats.tensor import Tensor
from quantcli.kernels.rows import dequantize

FIXTURES = Path(__file__).parent / "fixtures" / "prequantized"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.safetensors"))


def opened(name: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a fixture and its quantization_config."""
    path = FIXTURES / f"{name}.safetensors"
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return open_safetensors(path), json.loads(header["__metadata__"]["quantization_config"]) or None


def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        return dict(arrays)


def numbers(tensor: Tensor, rows: np.ndarray) -> np.ndarray:
    """Rows of a decoded tensor as float32."""
    if tensor.type.is_quantized:
        return dequantize(rows, tensor.type)
    assert tensor.type.name == "F32"
    return rows.view(np.float32)


def read(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    out = np.full((stop - start, tensor.row_bytes), 0xA5, np.uint8)
    tensor.read(start, stop, out)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_library(name: str) -> None:
    tensors = decode(*opened(name))
    weights = expected(name)
    assert weights.keys() <= tensors.keys()
    for key, weight in weights.items():
        assert tensors[key].shape == weight.shape
        found = numbers(tensors[key], read(tensors[key], 0, tensors[key].rows)).reshape(weight.shape)
        np.testing.assert_array_equal(found, weight, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_all_else_is_as_it_was(name: str) -> None:
    given, config = opened(name)
    left = {key: tensor for key, tensor in decode(given, config).items() if key not in expected(name)}
    assert all(given[key] is tensor for key, tensor in left.items())
    assert all(key.endswith(("bias", "norm.weight", "head.weight")) for key in left), "companions are left over"


@pytest.mark.parametrize("name", NAMES)
def test_any_stretch_of_rows_from_any_thread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "STRIP_BYTES", 4096)
    monkeypatch.setattr(strips, "KEPT_BYTES", 10000)
    monkeypatch.setattr(columns, "BLOCK_BYTES", 512)
    monkeypatch.setattr(columns, "READ_BYTES", 64)
    tensors = decode(*opened(name))
    for key in expected(name):
        tensor = tensors[key]
        whole = read(tensor, 0, tensor.rows)
        stretches = [(start, min(start + 5, tensor.rows)) for start in range(0, tensor.rows, 3)] * 2
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda stretch, tensor=tensor: read(tensor, *stretch), stretches))
        for (start, stop), rows in zip(stretches, found, strict=True):
            np.testing.assert_array_equal(rows, whole[start:stop])
        assert read(tensor, 1, 1).shape == (0, tensor.row_bytes)
