"""A Git LFS pointer in place of any file is called that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from quantcli.conversion.convert import convert
from quantcli.core.errors import FormatError, ModelError, QuantcliError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.imatrix import read_imatrix

STORIES = Path(__file__).parents[1] / "golden" / "stories260K"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 499723\n"


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.model", "config.json", "tokenizer_config.json", "generation_config.json", "model.safetensors",
        "chat_template.jinja", "tokenizer.json", "added_tokens.json", "README.md", "model.safetensors.index.json",
        "modules.json",
    ],
)  # fmt: skip
def test_a_pointer_is_called_that(name: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(STORIES, model)
    if name.endswith("index.json"):
        (model / "model.safetensors").unlink()
    (model / name).write_text(POINTER)
    with pytest.raises(QuantcliError) as caught:
        convert(model, "Q8_0", tmp_path / "out.gguf")
    assert caught.value.message == f"{model / name}: a Git LFS pointer, not the file itself"
    assert "git lfs pull" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "pytorch_model.bin"])
def test_a_single_file_that_is_a_pointer_is_called_that(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(QuantcliError, match="a Git LFS pointer, not the file itself"):
        convert(tmp_path / name, "Q8_0", tmp_path / "out.gguf")


def test_a_pointer_among_shards_is_called_that(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(STORIES, model)
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model-00002-of-00002.safetensors").write_text(POINTER)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: a Git LFS pointer, not the file itself"):
        convert(model, "Q8_0", tmp_path / "out.gguf")


@pytest.mark.parametrize("name", ["model.gguf", "model-00001-of-00002.gguf", "model.bin"])
def test_a_pointer_that_is_given_itself_is_called_that(name: str, tmp_path: Path) -> None:
    shutil.copytree(STORIES, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "model" / name
    path.write_text(POINTER)
    for read in (lambda: convert(path, "Q8_0", tmp_path / "out.gguf"), lambda: read_imatrix(path), lambda: open_gguf(path)):
        with pytest.raises(FormatError) as caught:
            read()
        assert caught.value.message == f"{path}: a Git LFS pointer, not the file itself"
