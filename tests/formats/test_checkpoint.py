"""Directories and files as people have them: which tensors, which configuration, which files beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from descriptors import open_descriptors
from small_checkpoint import index, refusal, safetensors, values

from quantcli.core.errors import FormatError
from quantcli.formats.checkpoint.checkpoint import open_checkpoint

FIXTURES = Path(__file__).parent / "fixtures"


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
    shards = [
        safetensors(model / f"model-{number:05}-of-00008.safetensors", **{f"t{number}": [number]}) for number in range(1, 9)
    ]
    with open_checkpoint(model) as checkpoint:
        assert not any(map(open_descriptors, shards))
        values(checkpoint)
        assert [open_descriptors(shard) for shard in shards] == [1] * 8
    assert not any(map(open_descriptors, shards))
    assert values(checkpoint)["t3"] == [3]
    checkpoint.close()


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
