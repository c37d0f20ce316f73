"""The option `-o`: files, directories, and what is neither."""

from __future__ import annotations

import pytest
from command_line import run_command


@pytest.fixture
def model(golden):
    return golden / "stories260K"


@pytest.fixture
def file(golden):
    return golden / "gguf_files" / "every-value.gguf"


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_directory_is_made(model, tmp_path, capsys):
    status, out, _ = run_command(capsys, model, "--type", "F16,Q8_0", "-o", f"{tmp_path}/a/b/")
    assert status == 0
    assert names(tmp_path) == ["a/b/stories260K-F16.gguf", "a/b/stories260K-Q8_0.gguf"]
    assert str(tmp_path / "a/b/stories260K-F16.gguf") in out
    assert run_command(capsys, model, "--type", "BF16", "-o", f"{tmp_path}/a/b/")[0] == 0
    assert len(names(tmp_path)) == 3


def test_a_directory_for_shards_is_made(file, tmp_path, capsys):
    words = ("split", file, "--split-max-tensors", 2, "-o", f"{tmp_path}/parts/")
    status, out, _ = run_command(capsys, *words, "--dry-run")
    assert (status, list(tmp_path.iterdir())) == (0, [])
    assert f"{tmp_path}/parts/every-value-00001-of-00003.gguf" in out
    assert run_command(capsys, *words)[0] == 0
    assert names(tmp_path) == [f"parts/every-value-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.mark.parametrize("more", [["--dry-run"], ["--tensor-type", "nothing=Q8_0"], ["--prune-layers", "99"]])
def test_no_directory_is_left_where_nothing_is_written(model, tmp_path, capsys, more):
    status, _, _ = run_command(capsys, model, "--type", "Q8_0,F16", "-o", f"{tmp_path}/a/b/", *more)
    assert status == (0 if more == ["--dry-run"] else 2)
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_a_directory(model, tmp_path, capsys):
    (tmp_path / "a").write_text("mine")
    status, _, err = run_command(capsys, model, "--type", "F16", "-o", f"{tmp_path}/a/")
    assert (status, err) == (1, f"error: {tmp_path}/a/: expected a directory or none, found a file")
    assert (tmp_path / "a").read_text() == "mine"


COMMANDS = {
    "convert": lambda model, file: [model, "--type", "F16"],
    "split": lambda model, file: ["split", file],
    "merge": lambda model, file: ["merge", file],
    "lora": lambda model, file: ["lora", model],
    "imatrix": lambda model, file: ["imatrix", model],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_stdout_is_refused(model, file, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    status, out, err = run_command(capsys, *COMMANDS[name](model, file), "-o", "-")
    assert (status, out) == (2, "")
    assert err == "error: -o -: the output cannot be written to stdout\nhint: give a file: -o NAME.gguf"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["merge", "imatrix"])
def test_a_path_that_ends_in_a_slash_is_no_file(model, file, tmp_path, capsys, name):
    status, out, err = run_command(capsys, *COMMANDS[name](model, file), "-o", f"{tmp_path}/a/")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: -o {tmp_path}/a/: expected a file, found a directory\n")
    assert not list(tmp_path.iterdir())
