"""What people type who know other tools: it works, or they are told the line to type."""

from __future__ import annotations

import json

import pytest
from command_line import run_command

from quantcli.cli.habits import Positions, read_positions
from quantcli.conversion.convert import convert
from quantcli.core.errors import UsageError
from quantcli.formats.gguf.shards import parse_size

STORY = ", there was a little girl named Lily. She lo"


@pytest.fixture
def model(golden):
    return golden / "stories260K"


@pytest.fixture(scope="module")
def stories(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("habits") / "stories.gguf"
    convert(golden / "stories260K", "F32", path)
    return path


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("inspct", "did you mean `quantize inspect`?"),
        ("Inspect", "did you mean `quantize inspect`?"),
        ("tokenise", "did you mean `quantize tokenize`?"),
        ("help", "quantize --help"),
        ("version", "quantize --version"),
        ("chat", "quantize run FILE --chat"),
    ],
)
def test_a_word_that_is_nearly_a_command_is_no_model(capsys, tmp_path, monkeypatch, word, hint):
    monkeypatch.chdir(tmp_path)
    for more in ([], ["model.gguf"], ["--type", "Q4_0"]):
        status, out, err = run_command(capsys, word, *more)
        assert (status, out, err) == (2, "", f"error: {word!r} is neither a command nor a model here\nhint: {hint}")
    (tmp_path / word).mkdir()
    assert "neither a command" not in run_command(capsys, word, "--type", "Q4_0")[2]


@pytest.mark.parametrize("word", ["storyteller", "Qwen/split", "./inspct", "run7b"])
def test_other_words_are_models(capsys, tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    # Not by the environment variable: huggingface_hub reads it once, for all tests after this one.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "neither a command" not in run_command(capsys, word, "--type", "Q4_0")[2]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], Positions()),
        (["Q4_K_M"], Positions(types="Q4_K_M")),
        (["q4_k_m,F16"], Positions(types="q4_k_m,F16")),
        (["out.gguf"], Positions("out.gguf")),
        (["out.gguf", "Q4_0"], Positions("out.gguf", "Q4_0")),
        (["out.gguf", "Q4_0", "8"], Positions("out.gguf", "Q4_0", 8)),
        (["folder/", "Q4_0"], Positions("folder/", "Q4_0")),
    ],
)
def test_arguments_by_position(words, found):
    assert read_positions(words) == found


@pytest.mark.parametrize(
    "words", [["Q4_KM"], ["out.bin", "Q4_0"], ["Q4_0", "out.gguf"], ["Q4_0", "0"], ["a.gguf", "b.gguf"]]
)
def test_other_arguments_are_refused(words):
    with pytest.raises(UsageError, match="unexpected argument") as caught:
        read_positions(words)
    assert caught.value.hint == "quantize MODEL --type T -o OUTPUT"


def test_type_and_output_by_position(model, tmp_path, capsys):
    status, _, err = run_command(capsys, model, tmp_path / "out.gguf", "BF16")
    assert (status, err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    status, _, err = run_command(capsys, model, "Q8_0", "--type", "F16", "-o", tmp_path)
    assert (status, err) == (2, "error: --type is given twice: F16 and, by position, Q8_0")


def test_the_converter_s_option_names(model, tmp_path, capsys):
    status, out, _ = run_command(capsys, model, "--outfile", tmp_path / "m.gguf", "--outtype", "f16", "--json")
    assert status == 0
    assert json.loads(out)["type"] == "F16"
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_the_option_names_of_llama_cli(stories, capsys):
    words = ["run", stories, "-p", "Once upon a time", "-c", 18, "-t", 1, "--n-predict", 13, "--temp", 0]
    assert run_command(capsys, *words) == (0, STORY + "\n", "")
    assert "context of 12 tokens is full" in run_command(capsys, *words[:4], "-c", 12, "--temp", 0)[2]


@pytest.mark.parametrize("option", ["-m", "--model"])
def test_the_model_is_an_argument(capsys, option):
    status, out, err = run_command(capsys, "run", option, "model.gguf", "-p", "Hello world")
    assert (status, out) == (2, "")
    assert err == (
        f"error: no such option: {option}: the model is an argument here\nhint: quantize run model.gguf -p 'Hello world'"
    )


def test_a_prompt_by_position(stories, capsys):
    words = ["run", stories, "Once upon a time", "-n", 13, "--temp", 0]
    assert run_command(capsys, *words) == (0, STORY + "\n", "")
    status, _, err = run_command(capsys, "run", stories, "Once", "upon", "a", "time")
    assert (status, err) == (2, "error: unexpected argument 'upon'\nhint: put the prompt in quotes: --prompt \"...\"")
    assert run_command(capsys, *words, "-p", "Once")[0] == 2


@pytest.mark.parametrize(("text", "size"), [("1MB", 10**6), ("2gb", 2 * 10**9), ("500M", 5 * 10**8), ("7B", 7), ("7", 7)])
def test_sizes_may_end_in_bytes(text, size):
    assert parse_size(text) == size
