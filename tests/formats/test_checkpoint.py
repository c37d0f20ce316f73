"""Directories and files as people have them, and every way they can be incomplete."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.core.errors import FormatError, ModelError, QuantcliError, UnsafePickleError
from quantcli.formats.checkpoint.checkpoint import Checkpoint, open_checkpoint
from quantcli.tensors.tensor import FileTensor

FIXTURES = Path(__file__).parent / "fixtures"


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


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with a config.json and no tensors yet."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama", "limit": [0.0, Infinity]}')
    return directory


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


# --- what is read ---------------------------------------------------------------------------------------------------------


def test_one_safetensors_file(model: Path) -> None:
    safetensors(model / "model.safetensors", a=[1, 2], b=[3])
    with open_checkpoint(model) as checkpoint:
        assert (checkpoint.path, checkpoint.directory) == (model, model)
        assert checkpoint.config["model_type"] == "llama"
        assert values(checkpoint) == {"a": [1, 2], "b": [3]}


def test_a_path_may_be_text(model: Path) -> None:
    safetensors(model / "model.safetensors", a=[1])
    assert open_checkpoint(str(model)).path == model


def test_shards_with_an_index(model: Path) -> None:
    safetensors(model / "x-1.safetensors", a=[1], b=[2])
    safetensors(model / "x-2.safetensors", c=[3])
    index(model, {"a": "x-1.safetensors", "b": "x-1.safetensors", "c": "x-2.safetensors"})
    assert values(open_checkpoint(model)) == {"a": [1], "b": [2], "c": [3]}


def test_shards_in_a_folder_of_the_directory(model: Path) -> None:
    (model / "parts").mkdir()
    safetensors(model / "parts" / "1.safetensors", a=[1])
    index(model, {"a": "parts/1.safetensors"})
    assert values(open_checkpoint(model)) == {"a": [1]}


def test_complete_shards_without_an_index(model: Path) -> None:
    safetensors(model / "model-00001-of-00002.safetensors", a=[1])
    safetensors(model / "model-00002-of-00002.safetensors", b=[2])
    assert values(open_checkpoint(model)) == {"a": [1], "b": [2]}


def test_a_safetensors_file_of_another_name(model: Path) -> None:
    safetensors(model / "consolidated.safetensors", a=[1])
    assert values(open_checkpoint(model)) == {"a": [1]}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_a_pytorch_file(model: Path, name: str) -> None:
    shutil.copy(FIXTURES / "module.pt", model / name)
    for side_file in ("training_args.bin", "optimizer.pt", "rng_state_0.pth", "scheduler.pt"):
        (model / side_file).write_bytes(b"not to be read")
    assert list(open_checkpoint(model).tensors) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_pytorch_shards_with_an_index(model: Path) -> None:
    shutil.copy(FIXTURES / "mixed.pt", model / "pytorch_model-00001-of-00002.bin")
    shutil.copy(FIXTURES / "parameters_legacy.pt", model / "pytorch_model-00002-of-00002.bin")
    first, second = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    names = {"w": first, "parameter": second, "marked": second, "labelled": second}
    index(model, names, "pytorch_model.bin.index.json")
    assert open_checkpoint(model).tensors.keys() == names.keys()


def test_safetensors_come_before_pytorch(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"not to be read")
    safetensors(model / "model-00001-of-00001.safetensors", a=[1])
    assert values(open_checkpoint(model)) == {"a": [1]}


def test_one_file_comes_before_shards(model: Path) -> None:
    safetensors(model / "model.safetensors", a=[1])
    index(model, {"a": "missing.safetensors"})
    assert values(open_checkpoint(model)) == {"a": [1]}


def test_a_single_file_with_its_config_beside_it(model: Path) -> None:
    path = safetensors(model / "other.safetensors", a=[1])
    safetensors(model / "model.safetensors", b=[1])
    checkpoint = open_checkpoint(path)
    assert (checkpoint.path, checkpoint.directory) == (path, model)
    assert values(checkpoint) == {"a": [1]}


def test_a_file_is_known_by_its_contents(model: Path) -> None:
    shutil.copy(FIXTURES / "mixed.pt", model / "model.safetensors")
    assert list(open_checkpoint(model).tensors) == ["w"]
    safetensors(model / "weights", a=[1])
    assert list(open_checkpoint(model / "weights").tensors) == ["a"]


# 0x0280 in little-endian is how a pickle begins, 0x207B how a JSON object does.
@pytest.mark.parametrize("length", [0x0280, 0x207B])
def test_a_safetensors_file_whose_length_looks_like_another_format(model: Path, length: int) -> None:
    header = json.dumps({"a": {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]}}).encode().ljust(length)
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert list(open_checkpoint(model).tensors) == ["a"]


def test_side_files(model: Path) -> None:
    safetensors(model / "model.safetensors", a=[1])
    (model / "tokenizer_config.json").write_text('\ufeff{"bos_token": "<s>"}', encoding="utf-8")
    (model / "broken.json").write_text('{"a": ')
    (model / "list.json").write_text("[1]")
    checkpoint = open_checkpoint(model)
    assert checkpoint.json("tokenizer_config.json") == {"bos_token": "<s>"}
    assert checkpoint.file("tokenizer_config.json") == model / "tokenizer_config.json"
    assert checkpoint.json("missing.json") is None
    assert checkpoint.file("missing.json") is None
    with pytest.raises(FormatError, match=r"broken\.json: the file is not valid JSON"):
        checkpoint.json("broken.json")
    with pytest.raises(FormatError, match="is a JSON array, expected an object"):
        checkpoint.json("list.json")
    with pytest.raises(FormatError, match="leads out of the model's directory"):
        checkpoint.file("../config.json")


def test_closing_gives_descriptors_back_and_reading_takes_them_again(model: Path) -> None:
    for number in range(1, 9):
        safetensors(model / f"model-{number:05}-of-00008.safetensors", **{f"t{number}": [number]})
    with open_checkpoint(model) as checkpoint:
        files = {tensor.file for tensor in checkpoint.tensors.values() if isinstance(tensor, FileTensor)}
        assert len(files) == 8
        assert all(file._descriptor is None for file in files)
        values(checkpoint)
        assert all(file._descriptor is not None for file in files)
    assert all(file._descriptor is None for file in files)
    assert values(checkpoint)["t3"] == [3]
    checkpoint.close()


# --- what is refused ------------------------------------------------------------------------------------------------------


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


# --- nothing outside the directory ----------------------------------------------------------------------------------------

OUTSIDE = [
    "../secret.safetensors", "/etc/passwd", "parts/../../secret.safetensors", "..\\secret.safetensors", "C:\\x", "C:x",
    "\\x", "", "a\0b", "..",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_cannot_name_files_outside(model: Path, name: str) -> None:
    safetensors(model.parent / "secret.safetensors", a=[1])
    index(model, {"a": name})
    assert f"the file name {name!r} leads out of the model's directory" in refusal(model, ModelError)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_directory_is_refused(model: Path, name: str) -> None:
    outside = model.parent / "outside"
    safetensors(outside, a=[1])
    safetensors(model / "model.safetensors", a=[1])
    (model / name).unlink()
    (model / name).symlink_to(outside)
    assert f"{name}: a link that leads out of the model's directory, to {outside}" in refusal(model)


def test_a_linked_folder_out_of_the_directory_is_refused(model: Path) -> None:
    (model.parent / "outside").mkdir()
    safetensors(model.parent / "outside" / "1.safetensors", a=[1])
    (model / "parts").symlink_to(model.parent / "outside")
    index(model, {"a": "parts/1.safetensors"})
    assert "leads out of the model's directory" in refusal(model, ModelError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json", "1.safetensors"])
def test_a_pipe_is_not_waited_for(model: Path, name: str) -> None:
    safetensors(model / "1.safetensors", a=[1])
    index(model, {"a": "1.safetensors"})
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    error = ModelError if name == "1.safetensors" else FormatError
    assert f"{name}: expected a file, found a device, pipe or socket" in refusal(model, error)


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "config.json", "1.safetensors"])
def test_a_folder_is_no_file(model: Path, name: str) -> None:
    safetensors(model / "1.safetensors", a=[1])
    index(model, {"a": "1.safetensors"})
    (model / name).unlink(missing_ok=True)
    (model / name).mkdir()
    error = ModelError if name == "1.safetensors" else FormatError
    assert f"{name}: expected a file, found a directory" in refusal(model, error)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no devices in its tree")
def test_an_index_cannot_reach_a_device_by_a_link(model: Path) -> None:
    (model / "zero.safetensors").symlink_to("/dev/zero")
    index(model, {"a": "zero.safetensors"})
    assert "a link that leads out of the model's directory, to /dev/zero" in refusal(model, ModelError)


def test_an_index_that_is_a_link_out_of_the_directory(model: Path) -> None:
    outside = model.parent / "outside.json"
    outside.write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    safetensors(model / "1.safetensors", a=[1])
    (model / "model.safetensors.index.json").symlink_to(outside)
    assert f"a link that leads out of the model's directory, to {outside}" in refusal(model)


def test_a_huge_index_is_not_read(model: Path) -> None:
    with (model / "model.safetensors.index.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "an index of 1099511627776 bytes, at most 100000000 expected" in refusal(model)


def test_a_huge_config_is_not_read(model: Path) -> None:
    os.truncate(model / "config.json", 1 << 40)
    assert "1099511627776 bytes, at most 268435456 expected" in refusal(model)


def test_every_place_outside_is_listed_at_once(model: Path) -> None:
    (model.parent / "outside").mkdir()
    (model / "linked").symlink_to(model.parent / "outside")
    safetensors(model.parent / "outside" / "2.safetensors", b=[1])
    safetensors(model / "1.safetensors", a=[1])
    names = {"a": "1.safetensors", "b": "linked/2.safetensors", "c": "/etc/passwd", "d": "../x", "e": "gone.safetensors"}
    index(model, names)
    message = refusal(model, ModelError)
    assert "missing shards: gone.safetensors; " in message
    assert "leads out of the model's directory, to " in message
    for name in ("/etc/passwd", "../x"):
        assert f"the file name {name!r} leads out of the model's directory" in message


def test_side_files_outside_are_not_read(model: Path) -> None:
    safetensors(model / "model.safetensors", a=[1])
    (model.parent / "secret").write_text("{}")
    for name in ("tokenizer.json", "README.md"):
        (model / name).symlink_to(model.parent / "secret")
    with open_checkpoint(model) as checkpoint:
        for name in ("tokenizer.json", "README.md"):
            with pytest.raises(FormatError, match="a link that leads out of the model's directory"):
                checkpoint.file(name)
        with pytest.raises(FormatError, match="a link that leads out of the model's directory"):
            checkpoint.json("tokenizer.json")


def test_a_link_within_the_directory_is_followed(model: Path) -> None:
    safetensors(model / "weights", a=[1])
    (model / "model.safetensors").symlink_to("weights")
    assert values(open_checkpoint(model)) == {"a": [1]}


def test_a_link_to_nothing_is_an_incomplete_download(model: Path) -> None:
    (model / "model.safetensors").symlink_to("../../blobs/0123")
    assert "model.safetensors: a link to a file that does not exist" in refusal(model)


def test_a_link_to_itself_is_refused(model: Path) -> None:
    (model / "model.safetensors").symlink_to("model.safetensors")
    assert "model.safetensors: a link that cannot be followed" in refusal(model)


def test_the_directory_itself_may_be_a_link(model: Path) -> None:
    safetensors(model / "model.safetensors", a=[1])
    link = model.parent / "link"
    link.symlink_to(model)
    assert values(open_checkpoint(link)) == {"a": [1]}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A model in the cache of the Hugging Face hub: every file is a link to a blob."""
    repository = tmp_path / "hub" / "models--org--name"
    directory = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    directory.mkdir(parents=True)
    safetensors(repository / "blobs" / "b1", a=[1])
    (repository / "blobs" / "b2").write_text("{}")
    (directory / "model.safetensors").symlink_to("../../blobs/b1")
    (directory / "config.json").symlink_to("../../blobs/b2")
    return directory


def test_the_hub_cache_is_read_through_its_links(snapshot: Path) -> None:
    assert values(open_checkpoint(snapshot)) == {"a": [1]}
    assert values(open_checkpoint(snapshot / "model.safetensors")) == {"a": [1]}


def test_a_folder_of_a_snapshot_reads_the_same_blobs(snapshot: Path) -> None:
    folder = snapshot / "unet"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to("../../../blobs/b1")
    (folder / "config.json").symlink_to("../../../blobs/b2")
    assert values(open_checkpoint(folder)) == {"a": [1]}


def test_a_blob_may_be_a_link_to_one_that_all_repositories_share(snapshot: Path) -> None:
    blobs = snapshot.parents[1] / "blobs"
    shared = snapshot.parents[2] / "blobs" / "01" / "0123"
    shared.parent.mkdir(parents=True)
    (blobs / "b1").rename(shared)
    (blobs / "b1").symlink_to("../../blobs/01/0123")
    assert values(open_checkpoint(snapshot)) == {"a": [1]}


@pytest.mark.parametrize(
    "target",
    [
        "../../../models--org--other/blobs/b1",
        "../../refs",
        "../other/x",
        "../../blobs/deep/x",
        "../../../blobs/x",
        "../../../blobs/01/23",
        "../../../../blobs/01/0123",
    ],
)
def test_a_snapshot_links_to_its_own_blobs_only(snapshot: Path, target: str) -> None:
    place = Path(os.path.normpath(snapshot / target))
    place.parent.mkdir(parents=True, exist_ok=True)
    safetensors(place, a=[1])
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(target)
    assert "a link that leads out of the model's directory" in refusal(snapshot)


# --- real checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["models/stories260K", "models/storyteller", "golden/llama-8x256"])
def test_real_checkpoints_read_as_the_safetensors_package_reads_them(shared: Path, name: str) -> None:
    torch_reader = pytest.importorskip("safetensors.torch", reason="reads bfloat16")
    torch = pytest.importorskip("torch")
    with open_checkpoint(shared / name) as checkpoint:
        expected = {}
        for path in sorted((shared / name).glob("*.safetensors")):
            expected |= torch_reader.load_file(path)
        assert checkpoint.tensors.keys() == expected.keys()
        for key, tensor in checkpoint.tensors.items():
            assert tensor.shape == tuple(expected[key].shape)
            assert tensor.load().tobytes() == expected[key].reshape(-1).view(torch.uint8).numpy().tobytes()


# --- sentence-transformers ------------------------------------------------------------------------------------------------


@pytest.fixture
def sentences(model: Path) -> Path:
    """A directory of sentence-transformers."""
    safetensors(model / "model.safetensors", a=[1.0])
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
    return model


def test_how_embeddings_are_pooled_is_part_of_the_configuration(sentences: Path):
    assert open_checkpoint(sentences).config["sentence_pooling"] == {"pooling_mode": "cls"}
    assert open_checkpoint(sentences / "model.safetensors").config["sentence_pooling"] == {"pooling_mode": "cls"}


def test_modules_need_not_pool(sentences: Path):
    (sentences / "modules.json").write_text('[{"type": "Transformer"}]')
    assert "sentence_pooling" not in open_checkpoint(sentences).config


@pytest.mark.parametrize(
    ("modules", "what"),
    [
        ("{}", "the file is not a JSON array of objects"),
        ("[1]", "the file is not a JSON array of objects"),
        ("[", "the file is not valid JSON"),
        ('[{"type": "Pooling", "path": "2_Pooling"}]', "2_Pooling/config.json: no such file; modules.json names it"),
        ('[{"type": "Pooling", "path": "../../etc"}]', "leads out of the model's directory"),
        ('[{"type": "Pooling", "path": "/etc"}]', "leads out of the model's directory"),
        ('[{"type": "Pooling"}]', "None/config.json: no such file"),
    ],
)
def test_modules_that_cannot_be_read(sentences: Path, modules: str, what: str):
    (sentences / "modules.json").write_text(modules)
    assert what in refusal(sentences)
