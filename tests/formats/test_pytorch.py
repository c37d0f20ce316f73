"""Files that torch wrote (fixtures/make_pytorch.py), read without it."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.core.block_types import OPAQUE_TYPES
from quantcli.core.errors import FormatError, ModelError, UnsafePickleError, UnsupportedError
from quantcli.formats.checkpoint.checkpoint import open_checkpoint
from quantcli.formats.checkpoint.pytorch import open_pytorch
from quantcli.tensors.strided import StridedTensor
from quantcli.tensors.tensor import OpaqueTensor, StoredTensor, Tensor

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FIXTURES / "expected.json").read_text())
READABLE = sorted(name for name, tensors in EXPECTED.items() if tensors)


def content(tensor: Tensor) -> bytes:
    return (tensor.encoded() if isinstance(tensor, OpaqueTensor) else tensor).load().tobytes()


@pytest.mark.parametrize("name", READABLE)
def test_every_tensor_is_the_one_torch_saved(name: str) -> None:
    tensors = open_pytorch(FIXTURES / f"{name}.pt")
    assert list(tensors) == list(EXPECTED[name])
    for key, expected in EXPECTED[name].items():
        tensor = tensors[key]
        assert (tensor.type.name, list(tensor.shape)) == (expected["type"], expected["shape"]), key
        assert content(tensor) == base64.b64decode(expected["data"]), key


@pytest.mark.parametrize("layout", ["views", "views_legacy"])
def test_only_scattered_views_are_gathered(layout: str) -> None:
    tensors = open_pytorch(FIXTURES / f"{layout}.pt")
    gathered = {name for name, tensor in tensors.items() if isinstance(tensor, StridedTensor)}
    assert gathered == {
        "transposed", "columns", "every_other_row", "every_third_column", "one_column", "expanded", "permuted", "swapped",
        "slab",
    }  # fmt: skip
    assert all(isinstance(tensors[name], StoredTensor) for name in tensors.keys() - gathered)


def test_tied_tensors_are_the_same_bytes_of_the_file() -> None:
    tensors = open_pytorch(FIXTURES / "views.pt")
    whole, tied, rows = (tensors[name] for name in ("whole", "tied", "rows"))
    assert isinstance(whole, StoredTensor)
    assert isinstance(tied, StoredTensor)
    assert isinstance(rows, StoredTensor)
    assert whole.offset == tied.offset
    assert rows.offset == whole.offset + 2 * whole.row_bytes


@pytest.mark.parametrize("name", ["box", "permuted", "swapped", "slab", "transposed", "expanded"])
def test_any_range_of_rows_can_be_read(name: str) -> None:
    tensor = open_pytorch(FIXTURES / "views.pt")[name]
    whole = np.frombuffer(base64.b64decode(EXPECTED["views"][name]["data"]), np.uint8).reshape(tensor.rows, -1)
    for start in range(tensor.rows):
        for stop in range(start, tensor.rows + 1):
            out = np.empty((stop - start, tensor.row_bytes), np.uint8)
            tensor.read(start, stop, out)
            assert out.tobytes() == whole[start:stop].tobytes()


@pytest.mark.parametrize("name", ["types", "types_legacy"])
def test_types_gguf_lacks_are_refused_when_they_are_read(name: str) -> None:
    tensors = open_pytorch(FIXTURES / f"{name}.pt")
    opaque = {tensor.type.name for tensor in tensors.values() if isinstance(tensor, OpaqueTensor)}
    assert opaque == {row["type"] for row in EXPECTED[name].values() if row["type"] in OPAQUE_TYPES}
    assert {"U8", "BOOL", "C64"} <= opaque
    with pytest.raises(UnsupportedError, match="tensor 'bool' is stored as BOOL"):
        tensors["bool"].load()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("unsafe_module", UnsafePickleError, r"asks for 'torch\.nn\.modules\.linear\.Linear', which no state dict needs"),
        ("a_list", FormatError, "holds a list, expected a state dict"),
        ("a_tensor", FormatError, "holds a tensor, expected a state dict"),
        ("negated", FormatError, "a tensor whose values are not those of its storage: neg"),
        ("sparse", UnsafePickleError, r"asks for 'torch\._utils\._rebuild_sparse_tensor', which no state dict needs"),
        ("scalar_of_numpy", UnsafePickleError, r"asks for 'numpy\._core\.multiarray\.scalar', which no state dict needs"),
        ("no_tensors", ModelError, "no tensors in it, expected a state dict: its keys are 'epoch'"),
    ],
)
def test_what_is_no_state_dict_is_refused(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_pytorch(FIXTURES / f"{name}.pt")


def test_shards(tmp_path: Path) -> None:
    names = {"a": 1, "b": 1, "c": 2}
    files = {name: f"sharded-{number:05}-of-00002.pt" for name, number in names.items()}
    for file in files.values():
        shutil.copy(FIXTURES / file, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == list(names)
        for name, tensor in checkpoint.tensors.items():
            expected = EXPECTED[f"sharded-0000{names[name]}-of-00002"][name]
            assert content(tensor) == base64.b64decode(expected["data"])


def test_the_fixtures_are_what_torch_reads() -> None:
    torch = pytest.importorskip("torch", reason="compares the fixtures with torch.load")
    for name in READABLE:
        saved = torch.load(FIXTURES / f"{name}.pt", weights_only=False)  # our own files
        saved = saved.get("state_dict", saved.get("model", saved))
        saved = saved.get("module", saved)
        for key, expected in EXPECTED[name].items():
            assert list(saved[key].shape) == expected["shape"], (name, key)
