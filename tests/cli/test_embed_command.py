"""`quantize embed` as a user meets it; `runner` tests the vectors themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from changed_file import write_numbers
from command_line import run_command

from quantcli.conversion.convert import convert


@pytest.fixture(scope="module")
def stories(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("embed") / "stories.gguf"
    convert(golden / "stories260K", "F32", path)
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Status, stdout and stderr of the command."""
    return run_command(capsys, "embed", *arguments)


def test_vectors_are_one_document(stories, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("a cat\n\na little dog\n")
    status, out, err = run(capsys, stories, "--prompt", "Once", "--text", tmp_path / "texts.txt", "--json")
    document = json.loads(out)
    assert (status, err) == (0, "")
    assert (document["pooling"], document["normalized"], document["dimensions"]) == ("mean", True, 64)
    assert [entry["tokens"][0] for entry in document["embeddings"]] == [1, 1, 1]
    assert all(sum(x * x for x in entry["embedding"]) == pytest.approx(1) for entry in document["embeddings"])
    status, out, err = run(capsys, stories, "--prompt", "Once", "--pooling", "none", "--no-normalize", "--json")
    entry = json.loads(out)["embeddings"][0]
    assert len(entry["embedding"]) == len(entry["tokens"]) > 1
    assert {len(row) for row in entry["embedding"]} == {64}


def test_a_person_sees_how_alike_texts_are(stories, capsys):
    status, out, err = run(capsys, stories, "-p", "a little dog", "-p", "a little dog", "-p", "Once\tupon")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["Text", "Tokens", "Vector"]
    assert "(64)" in lines[1]
    assert "Once\\tupon" in lines[3]
    assert lines[5] == "Cosine similarity"
    assert lines[7].split()[:3] == ["1", "1.000", "1.000"]
    assert "Cosine similarity" not in run(capsys, stories, "-p", "alone")[1]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "no text to embed"),
        (["--prompt", "\udcff"], 2, "not UTF-8"),
        (["--prompt", "a", "--pooling", "max"], 2, "unknown pooling 'max'"),
        (["--prompt", "Once upon a time", "--ctx", "3"], 1, "the text has 5 tokens, and the context is 3"),
        (["--text", "no-such-file"], 2, "no-such-file"),
    ],
)
def test_bad_requests_end_with_one_line(stories, capsys, arguments, status, message):
    found, out, err = run(capsys, stories, *arguments)
    assert (found, out) == (status, "")
    assert err.startswith("error: ")
    assert message in err.splitlines()[0]


@pytest.mark.parametrize("first", [[float("nan")], [float("inf")], [3e38] * 64], ids=["nan", "inf", "huge"])
def test_an_output_that_is_no_number_is_said_wherever_it_is_read(first, stories, tmp_path, capsys):
    path = write_numbers(stories, tmp_path / "spoiled.gguf", "output_norm.weight", np.array(first, np.float32))
    (tmp_path / "text").write_text("Once upon a time there was a little dog. " * 20)
    for words in (
        ("embed", path, "-p", "a", "--json"),
        ("embed", path, "-p", "a", "-p", "b"),
        ("embed", path, "-p", "a", "--pooling", "none", "--no-normalize"),
        ("run", path, "-p", "a", "-n", 2),
        ("eval", path, "--text", tmp_path / "text", "--ctx", 16, "--chunks", 2),
    ):
        status, out, err = run_command(capsys, *words)
        assert (status, out.strip(), err.count("\n")) == (1, "", 1)
        assert err.startswith("error: the model's output is not a number")
