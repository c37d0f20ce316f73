"""An architecture of one's own, described outside the package: converted, run, evaluated, embedded and measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import run_command

from quantcli.conversion.convert import convert

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"

OWN = """
extends = "llama"
gguf = "my-llama"
title = "Mine"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storyteller as a llama, and as an architecture that the package does not know."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.toml").write_text(OWN)
    (folder / "other.toml").write_text(OWN.replace("my-llama", "your-llama"))
    (folder / "without_graph.toml").write_text(OWN + "[graph]\nmissing = ['magic']\n")
    (folder / "text.txt").write_text("Once upon a time there was a little girl who had a dog. " * 8)
    convert(STORYTELLER, "F16", folder / "llama.gguf")
    convert(STORYTELLER, "F16", folder / "own.gguf", architecture_file=folder / "own.toml")
    return folder


@pytest.fixture
def document(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """What a command prints as JSON."""

    def called(*words: str | Path) -> Any:
        status, out, errors = run_command(capsys, *words, "--json")
        assert status == 0, errors
        return json.loads(out)

    return called


def test_the_file_bears_the_name_of_the_own_architecture(place: Path, document: Callable[..., Any]):
    assert document("inspect", place / "own.gguf")["architecture"] == "my-llama"


COMMANDS = {
    "run": (["--prompt", "Once upon a time", "-n", "12", "--temp", "0"], "tokens"),
    "eval": (["--text", "text.txt", "--ctx", "32", "--chunks", "2"], "perplexity"),
    "embed": (["--prompt", "A cat sleeps."], "embeddings"),
    "bench": (["-p", "4", "-n", "0", "-r", "1"], "parameters"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_it_computes_what_the_architecture_that_it_extends_computes(place, document, name, monkeypatch):
    monkeypatch.chdir(place)
    words, key = COMMANDS[name]
    own = document(name, "own.gguf", *words, "--arch-file", "own.toml")
    assert own[key]
    assert own[key] == document(name, "llama.gguf", *words)[key]


def test_the_base_of_an_evaluation_is_of_the_same_architecture(place, document):
    words = ("--text", place / "text.txt", "--ctx", "32", "--chunks", "1", "--base", place / "own.gguf")
    assert document("eval", place / "own.gguf", *words, "--arch-file", place / "own.toml")["same_top"] == 1.0


@pytest.mark.parametrize(
    ("arch_file", "message"),
    [
        (None, "GGUF architecture 'my-llama' is not supported"),
        ("other.toml", "other.toml: describes the GGUF architecture 'your-llama', expected 'my-llama'"),
        ("without_graph.toml", "its graph needs magic"),
        ("nowhere.toml", "nowhere.toml: no such architecture file"),
    ],
)
def test_what_cannot_be_run(place, capsys, arch_file, message):
    options = ["--arch-file", place / arch_file] if arch_file else []
    status, _, errors = run_command(capsys, "run", place / "own.gguf", "--prompt", "x", *options)
    assert status == 1
    assert message in errors
    assert ("--arch-file" in errors) == (arch_file is None)
