"""Files of the reference, read and written again: the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantcli.core.block_types import TYPES
from quantcli.formats.gguf.reader import GGUFFile, open_gguf
from quantcli.formats.gguf.spec import ValueType, array, string, u32
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.tensors.tensor import TensorInfo


def copy(source: GGUFFile, target: Path) -> bytes:
    tensors = list(source.tensors.values())
    with GGUFWriter(target, source.metadata, tensors) as writer:
        for index, tensor in enumerate(tensors):
            writer.write(index, 0, source.map(tensor))
    return target.read_bytes()


def test_a_file_with_every_value_type_is_copied_byte_for_byte(golden: Path, tmp_path: Path) -> None:
    path = golden / "gguf_files" / "every-value.gguf"
    with open_gguf(path) as source:
        assert copy(source, tmp_path / "copy.gguf") == path.read_bytes()


@pytest.mark.parametrize("name", ["llama-8x256.bf16.gguf", "imatrix.gguf"])
def test_a_reference_file_is_copied_byte_for_byte(shared: Path, tmp_path: Path, name: str) -> None:
    path = shared / "golden" / name
    with open_gguf(path) as source:
        assert copy(source, tmp_path / "copy.gguf") == path.read_bytes()


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "qwen2", "bert-bge"])
def test_a_vocabulary_is_copied_byte_for_byte_but_for_the_padding(shared: Path, tmp_path: Path, name: str) -> None:
    path = shared / "golden" / "tokenization" / f"{name}.vocab.gguf"
    with open_gguf(path) as source:
        copied = copy(source, tmp_path / "copy.gguf")
    original = path.read_bytes()  # without tensors the converter leaves out the padding that gguf.cpp writes
    assert copied == original.ljust(-(-len(original) // 32) * 32, b"\0")


def test_what_the_values_are(golden: Path) -> None:
    with open_gguf(golden / "gguf_files" / "every-value.gguf") as file:
        assert file.get("test.u64") == 2**64 - 1
        assert file.get("test.i64") == -(2**63)
        assert file.get("test.f32") == np.float32(1e-5)
        assert file.get("test.f64") == 1e-300
        assert file.get("test.bool") is True
        assert file.get("test.str.array") == ["", "plain", "▁déjà", "\udcff\udcfe not UTF-8 \udc80", "😀"]
        assert file.get("test.i16.array").dtype == np.int16
        assert file.get("test.i16.array").tolist() == [-32768, 0, 1]
        assert file.get("test.bool.array").tolist() == [True, False, True]
        assert len(file.get("test.empty")) == 0
        assert file.get("no such key", "default") == "default"
        assert (file.version, file.alignment, file.split, file.architecture) == (3, 32, (1, 1), None)


def test_what_the_tensors_are(golden: Path) -> None:
    with open_gguf(golden / "gguf_files" / "every-value.gguf") as file:
        assert {name: (tensor.shape, tensor.type.name) for name, tensor in file.tensors.items()} == {
            "vector": ((5,), "F32"),
            "matrix": ((3, 64), "Q8_0"),
            "cube": ((3, 2, 256), "Q4_K"),
            "folded": ((7,), "F16"),
            "four": ((5, 4, 3, 2), "BF16"),
        }
        for name, tensor in file.tensors.items():
            expected = bytes((index * 7 + len(name)) % 251 for index in range(tensor.nbytes))
            assert tensor.load().tobytes() == file.map(tensor).tobytes() == expected


def test_a_row_is_read_on_its_own(golden: Path) -> None:
    with open_gguf(golden / "gguf_files" / "every-value.gguf") as file:
        tensor = file.tensors["matrix"]
        row = np.empty((1, tensor.row_bytes), np.uint8)
        tensor.read(1, 2, row)
        assert row.tobytes() == file.map(tensor)[1].tobytes()


def test_a_map_is_read_only_and_outlives_the_file(golden: Path) -> None:
    with open_gguf(golden / "gguf_files" / "every-value.gguf") as file:
        view = file.map(file.tensors["vector"])
    assert view.shape == (1, 20)
    assert view[0, :3].tolist() == [6, 13, 20]
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1


def test_a_file_that_is_opened_again_after_close(golden: Path) -> None:
    file = open_gguf(golden / "gguf_files" / "every-value.gguf")
    file.close()
    assert file.map(file.tensors["vector"]).shape == (1, 20)
    file.close()


def test_the_gguf_package_reads_what_was_written(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the independent reader is not installed")
    path = tmp_path / "new.gguf"
    metadata = {
        "general.architecture": string("llama"),
        "general.alignment": u32(128),
        "tokens": array(ValueType.STRING, ["a", "é"]),
        "scores": array(ValueType.FLOAT32, [0.5, -1]),
    }
    tensors = [TensorInfo("a", (3, 5), TYPES["F32"]), TensorInfo("b", (1, 2, 32), TYPES["Q8_0"])]
    numbers = np.arange(15, dtype="<f4").reshape(3, 5)
    with GGUFWriter(path, metadata, tensors) as writer:
        writer.write(1, 34, bytes(range(100, 134)))
        writer.write(0, 0, numbers)
        writer.write(1, 0, bytes(range(34)))
    assert path.stat().st_size == writer.file_bytes
    reader = gguf.GGUFReader(path)
    assert reader.alignment == 128
    assert {key: reader.fields[key].contents() for key in metadata} == {
        "general.architecture": "llama", "general.alignment": 128, "tokens": ["a", "é"], "scores": [0.5, -1],
    }  # fmt: skip
    first, second = reader.tensors
    assert np.array_equal(first.data, numbers)
    assert first.data_offset % 128 == second.data_offset % 128 == 0
    assert second.data.tobytes() == bytes(range(34)) + bytes(range(100, 134))
    assert second.shape.tolist() == [32, 2]
