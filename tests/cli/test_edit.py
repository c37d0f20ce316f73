"""`quantize edit`: metadata changed in place where the header keeps its length, else by a copy; tensors stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import run_command

from quantcli.conversion.convert import convert
from quantcli.formats.gguf.reader import open_gguf

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("edit") / "model.gguf"
    convert(STORYTELLER, "Q4_0", path)
    return path


@pytest.fixture
def model(made, tmp_path) -> Path:
    return Path(shutil.copy(made, tmp_path / "model.gguf"))


@pytest.fixture
def edit(capsys):
    return lambda *words: run_command(capsys, "edit", *words)


def content(path: Path) -> tuple[dict[str, object], dict[str, bytes]]:
    """The scalar metadata, and the tensors' bytes."""
    with open_gguf(path) as file:
        values = {key: field.value for key, field in file.metadata.items() if field.element is None}
        return values, {name: tensor.load().tobytes() for name, tensor in file.tensors.items()}


def test_a_value_of_the_same_length_is_changed_in_place(edit, model, made):
    before, identity = content(model), model.stat().st_ino
    status, said, _ = edit(model, "--set", "general.name=Storybooker", "--set", "tokenizer.ggml.eos_token_id=7")
    assert (status, said) == (0, f"{model}: 2 keys changed, in place\n")
    values, tensors = content(model)
    assert values == before[0] | {"general.name": "Storybooker", "tokenizer.ggml.eos_token_id": 7}
    assert tensors == before[1]
    assert (model.stat().st_ino, model.stat().st_size) == (identity, made.stat().st_size)


def test_what_does_not_fit_is_copied(edit, model):
    before = content(model)
    template = model.parent / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}" * 20)
    words = ("--chat-template", template, "--remove", "general.name", "--rename", "llama.vocab_size=old.size")
    status, said, _ = edit(model, *words, "--set", "new.key=float:2.5")
    assert (status, said) == (0, f"{model}: 4 keys changed\n")
    values, tensors = content(model)
    expected = {"llama.vocab_size": None, "general.name": None}
    assert values == {key: value for key, value in before[0].items() if key not in expected} | {
        "old.size": 2048, "tokenizer.chat_template": template.read_text(), "new.key": 2.5,
    }  # fmt: skip
    assert tensors == before[1]
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.gguf", "template.jinja"]


def test_a_copy_leaves_the_file_as_it_is(edit, model, made, tmp_path):
    other = tmp_path / "other.gguf"
    status, said, _ = edit(model, "--set", "general.name=Other", "-o", other, "--json")
    assert (status, json.loads(said)) == (0, {"output": str(other), "changed": 1, "copied": True})
    assert model.read_bytes() == made.read_bytes()
    assert content(other)[0]["general.name"] == "Other"
    status, _, errors = edit(model, "--set", "general.name=Other", "-o", other)
    assert status == 1
    assert "exists" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to change"),
        (("--set", "general.name"), "'general.name' is not of the form KEY=VALUE"),
        (("--set", "tokenizer.ggml.eos_token_id=two"), "cannot be set to 'two': its type is uint32"),
        (("--set", "tokenizer.ggml.tokens=a"), "its type is array"),
        (("--set", "new.key=5"), "is not of the form KEY=TYPE:VALUE"),
        (("--set", "general.alignment=int:64"), "general.alignment says how the file is laid out"),
        (("--remove", "no.such"), "there is no metadata key 'no.such'"),
        (("--rename", "no.such=other"), "there is no metadata key 'no.such'"),
        (("--rename", "general.name=general.architecture"), "cannot be renamed: there is a key 'general.architecture'"),
    ],
)
def test_wrong_changes_change_nothing(edit, model, made, words, message):
    status, said, errors = edit(model, *words)
    assert (status, said) == (2, "")
    assert message in errors
    assert model.read_bytes() == made.read_bytes()


def test_a_number_beyond_its_type(edit, model, made):
    status, _, errors = edit(model, "--set", "tokenizer.ggml.eos_token_id=-1")
    assert status == 1
    assert "cannot be written as UINT32" in errors
    assert model.read_bytes() == made.read_bytes()


def test_a_shard_is_refused(edit, model, tmp_path):
    from quantcli.formats.gguf.shards import by_count
    from quantcli.formats.gguf.split import split_gguf

    with open_gguf(model) as file:
        split_gguf(file, tmp_path / "part", by_count(20))
    status, _, errors = edit(tmp_path / "part-00001-of-00002.gguf", "--set", "general.name=x")
    assert status == 2
    assert "a split model" in errors
