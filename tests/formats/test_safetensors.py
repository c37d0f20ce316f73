"""Files written by the safetensors package, read by ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantcli.core.errors import UnsupportedError
from quantcli.formats.checkpoint.safetensors import open_safetensors
from quantcli.tensors.tensor import OpaqueTensor, StoredTensor

oracle = pytest.importorskip("safetensors.numpy", reason="the safetensors package writes the files")

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}


def sample(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = np.random.default_rng(len(shape)).integers(0, 120, size, np.uint8)
    return data.view(dtype).reshape(shape)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (2, 3, 4), (0, 4), (4, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_plain_type_reads_as_it_was_written(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    x = sample(DTYPES[dtype], shape)
    oracle.save_file({"before": np.zeros(3, "f4"), "x": x}, tmp_path / "x.safetensors", {"format": "np"})
    tensors = open_safetensors(tmp_path / "x.safetensors")
    assert set(tensors) == {"before", "x"}
    tensor = tensors["x"]
    assert (tensor.type.name, tensor.shape, tensor.size) == (dtype, shape, x.size)
    assert tensor.load().tobytes() == x.tobytes()


def test_bfloat16_is_a_plain_type(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="NumPy has no bfloat16")
    from safetensors.torch import save_file

    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    save_file({"x": x}, tmp_path / "x.safetensors")
    tensor = open_safetensors(tmp_path / "x.safetensors")["x"]
    assert tensor.type.name == "BF16"
    assert tensor.load().tobytes() == x.view(torch.int16).numpy().tobytes()


def test_rows_are_read_from_the_middle(tmp_path: Path) -> None:
    x = sample("<f4", (3, 5, 7))
    oracle.save_file({"x": x}, tmp_path / "x.safetensors")
    tensor = open_safetensors(tmp_path / "x.safetensors")["x"]
    out = np.empty((6, tensor.row_bytes), np.uint8)
    tensor.read(4, 10, out)
    assert out.tobytes() == x.reshape(15, 7)[4:10].tobytes()


def test_a_type_gguf_lacks_is_listed_and_refused_only_when_read(tmp_path: Path) -> None:
    mask = np.tril(np.ones((4, 4), bool))
    oracle.save_file({"attn.bias": mask, "w": np.ones(2, "f4")}, tmp_path / "x.safetensors")
    tensors = open_safetensors(tmp_path / "x.safetensors")
    tensor = tensors["attn.bias"]
    assert isinstance(tensor, OpaqueTensor)
    assert (tensor.type.name, tensor.shape, tensor.nbytes) == ("BOOL", (4, 4), 16)
    with pytest.raises(UnsupportedError, match=r"tensor 'attn\.bias' is stored as BOOL"):
        tensor.load()
    assert tensor.encoded().load().tobytes() == mask.tobytes()
    assert tensors["w"].load().tolist() == [1, 1]


def test_float8_is_listed_with_its_size(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="NumPy has no float8")
    from safetensors.torch import save_file

    x = torch.arange(6.0).reshape(2, 3).to(torch.float8_e4m3fn)
    save_file({"x": x}, tmp_path / "x.safetensors")
    tensor = open_safetensors(tmp_path / "x.safetensors")["x"]
    assert isinstance(tensor, OpaqueTensor)
    assert (tensor.type.name, tensor.nbytes) == ("F8_E4M3", 6)
    assert tensor.encoded().load().view(np.uint8).tobytes() == x.view(torch.uint8).numpy().tobytes()


def test_tensors_come_in_the_order_of_their_data(tmp_path: Path) -> None:
    oracle.save_file({name: np.ones(2, "f4") for name in "zxay"}, tmp_path / "x.safetensors")
    tensors = open_safetensors(tmp_path / "x.safetensors").values()
    offsets = [tensor.offset for tensor in tensors if isinstance(tensor, StoredTensor)]
    assert len(offsets) == 4
    assert offsets == sorted(offsets)


def test_a_file_without_tensors_is_sound(tmp_path: Path) -> None:
    oracle.save_file({}, tmp_path / "x.safetensors")
    assert open_safetensors(tmp_path / "x.safetensors") == {}


def test_metadata_may_be_null(tmp_path: Path) -> None:
    """As MLX writes it where there are none, and as the library reads it."""
    path = tmp_path / "x.safetensors"
    header = b'{"__metadata__":null,"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.float32([1, 2]).tobytes())
    np.testing.assert_array_equal(open_safetensors(path)["x"].load(), oracle.load_file(path)["x"])
