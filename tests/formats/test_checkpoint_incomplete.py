"""Every way in which a checkpoint can be incomplete, or something else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from small_checkpoint import index, refusal, safetensors, values

from quantcli.core.errors import FormatError, ModelError, UnsafePickleError
from quantcli.formats.checkpoint.checkpoint import open_checkpoint

FIXTURES = Path(__file__).parent / "fixtures"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file or directory") as caught:
        open_checkpoint(tmp_path / "org" / "model")
    assert "ORG/NAME@main" in (caught.value.hint or "")


def test_an_empty_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: the directory is empty"


def test_a_directory_without_tensors(model: Path) -> None:
    (model / "README.md").touch()
    assert "found README.md, config.json, expected *.safetensors or PyTorch files" in refusal(model, ModelError)


@pytest.mark.parametrize(
    ("beside", "hint"),
    [("adapter_config.json", "adapter"), ("params.json", "original layout"), (None, "Put the model's config.json")],
)
def test_a_missing_config(tmp_path: Path, beside: str | None, hint: str) -> None:
    safetensors(tmp_path / "model.safetensors", a=[1])
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not to be read")
    if beside:
        (tmp_path / beside).write_text("{}")
    with pytest.raises(FormatError, match=r"config\.json: no such file") as caught:
        open_checkpoint(tmp_path)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"GGUF\3\0\0\0", "a GGUF file, expected a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"sys_info" + bytes(92), "a PyTorch file in the layout before 0.1.10, a tar archive"),
        (b'{\n  "metadata": {', "a JSON file, expected tensors"),
        (b"<!DOCTYPE html><html>", "not a safetensors file: a header of"),
    ],
)
def test_a_file_of_something_else(model: Path, content: bytes, message: str) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert message in refusal(model)


def test_a_foreign_file_of_no_known_name(model: Path) -> None:
    (model / "weights.dat").write_bytes(b"\x89HDF\r\n\x1a\n0000")
    assert r"neither safetensors nor a PyTorch file: it starts with b'\x89HDF\r\n\x1a\n'" in refusal(model / "weights.dat")


def test_several_models_in_a_directory(model: Path) -> None:
    safetensors(model / "a.safetensors", a=[1])
    safetensors(model / "b.safetensors", a=[1])
    assert "which of these files is the model? a.safetensors, b.safetensors" in refusal(model, ModelError)


def test_one_shard_is_not_the_model(model: Path) -> None:
    path = safetensors(model / "model-00002-of-00003.safetensors", a=[1])
    assert refusal(path, ModelError) == f"{path}: shard 2 of 3, expected the whole model"
    assert values(open_checkpoint(safetensors(model / "model-00001-of-00001.safetensors", a=[1]))) == {"a": [1]}


def test_an_unsafe_pickle_keeps_its_error(model: Path) -> None:
    shutil.copy(FIXTURES / "unsafe_module.pt", model / "pytorch_model.bin")
    assert "torch.nn.modules.linear.Linear" in refusal(model, UnsafePickleError)


def test_an_unsafe_shard_is_not_just_one_fault_of_many(model: Path) -> None:
    shutil.copy(FIXTURES / "unsafe_module.pt", model / "2.bin")
    index(model, {"a": "1.bin", "b": "2.bin"}, "pytorch_model.bin.index.json")
    assert "torch.nn.modules.linear.Linear" in refusal(model, UnsafePickleError)


def test_all_faults_of_shards_are_listed_at_once(model: Path) -> None:
    safetensors(model / "1.safetensors", a=[1], twice=[1], unlisted=[1])
    safetensors(model / "2.safetensors", b=[1], twice=[1])
    (model / "3.safetensors").write_bytes(b"\x10\0\0\0")
    names = {"a": "1", "lost": "1", "twice": "2", "b": "2", "c": "3", "d": "4", "e": "5"}
    index(model, {name: f"{shard}.safetensors" for name, shard in names.items()})
    message = refusal(model, ModelError)
    assert message.startswith(f"{model / 'model.safetensors.index.json'}: missing shards: 4.safetensors, 5.safetensors; ")
    assert "3.safetensors: too short for a safetensors file: 4 bytes" in message
    assert "tensors missing from their shard: lost (1.safetensors)" in message
    assert "tensors the index does not name: unlisted (1.safetensors)" in message
    assert "tensors in several shards: twice (1.safetensors, 2.safetensors)" in message


def test_shards_come_in_the_order_of_their_names_and_tensors_in_that_of_theirs(model: Path) -> None:
    safetensors(model / "model-00002-of-00002.safetensors", z=[1], a=[2])
    safetensors(model / "model-00001-of-00002.safetensors", y=[3], b=[4])
    places = {"a": 2, "b": 1, "y": 1, "z": 2}
    index(model, {name: f"model-0000{shard}-of-00002.safetensors" for name, shard in places.items()})
    with open_checkpoint(model) as checkpoint:
        assert list(checkpoint.tensors) == ["b", "y", "a", "z"]


def test_a_long_list_of_faults_is_counted(model: Path) -> None:
    index(model, {str(number): f"{number:03}.safetensors" for number in range(500)})
    message = refusal(model, ModelError)
    assert "007.safetensors and 492 more" in message
    assert len(message) < 500 + len(str(model))


def test_shards_without_an_index_must_be_complete(model: Path) -> None:
    safetensors(model / "model-00001-of-00003.safetensors", a=[1])
    safetensors(model / "model-00003-of-00003.safetensors", a=[1])
    message = refusal(model, ModelError)
    assert "missing shards: model-00002-of-00003.safetensors" in message
    assert "tensors in several shards: a (" in message


def test_a_shard_count_of_no_end_is_not_walked(model: Path) -> None:
    safetensors(model / "model-00001-of-09999.safetensors", a=[1])
    assert "and 9990 more" in refusal(model, ModelError)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 3}, "x"])
def test_an_index_without_a_map(model: Path, weight_map: Any) -> None:
    index(model, weight_map)
    assert "weight_map is not an object of file names" in refusal(model)


def test_an_index_that_names_a_tensor_twice(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1", "a": "2"}}')
    assert "the index is not valid JSON: 'a' comes twice" in refusal(model)
