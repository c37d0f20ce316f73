"""`quantize imatrix`: what it writes and says, and the wrong turns."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from command_line import run_command

from quantcli.conversion.convert import convert
from quantcli.formats.imatrix import read_imatrix
from quantcli.formats.imatrix_sums import read_sums, write_sums

TEXT = "Once upon a time there was a little dog named Max. He lived in a small house near the big park. " * 20
CHUNKS = ("--ctx", "32", "--chunks", "4")


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imatrix")
    convert(golden / "stories260K", "F16", folder / "model.gguf")
    (folder / "text.txt").write_text(TEXT)
    (folder / "short.txt").write_text(TEXT[:60])
    (folder / "latin.txt").write_bytes(b"caf\xe9 " * 500)
    return folder


@pytest.fixture
def imatrix(folder, capsys):
    def run(*words, text="text.txt", model="model.gguf"):
        inputs = (folder / model, "--text", folder / text) if model else ()
        return run_command(capsys, "imatrix", *inputs, *words)

    return run


def test_what_was_collected_is_one_document(imatrix, folder, tmp_path):
    out = tmp_path / "imatrix.gguf"
    status, said, errors = imatrix("-o", out, *CHUNKS, "--json")
    assert (status, errors) == (0, "")
    document = json.loads(said)
    assert document.pop("seconds") > 0
    assert document == {
        "output": str(out), "datasets": [str(folder / "text.txt")], "chunks": 4, "chunk_size": 32, "tokens": 128,
        "tensors": 35, "unused_experts": {},
        "scarce_experts": {},
    }  # fmt: skip
    assert len(read_imatrix(out).entries) == 35


def test_what_was_collected_reads_well(imatrix, tmp_path):
    status, said, _ = imatrix("-o", tmp_path / "imatrix.gguf", *CHUNKS)
    assert status == 0
    assert "128 in 4 chunks of 32" in said
    assert all(len(line) <= 160 for line in said.splitlines())


def test_the_recipe_takes_it(imatrix, golden, tmp_path, capsys):
    assert imatrix("-o", tmp_path / "imatrix.gguf", *CHUNKS)[0] == 0
    model = golden / "stories260K"
    words = (model, "--type", "Q4_0", "--imatrix", tmp_path / "imatrix.gguf", "-o", tmp_path / "model.gguf")
    assert run_command(capsys, *words)[0] == 0


def test_an_interrupted_run_goes_on(imatrix, tmp_path):
    whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    assert imatrix("-o", whole, *CHUNKS)[0] == 0
    assert imatrix("-o", parts, "--ctx", "32", "--chunks", "1")[0] == 0
    assert imatrix("-o", parts, *CHUNKS, "--resume")[0] == 0
    one, other = read_sums(whole), read_sums(parts)
    assert (one.datasets, one.chunks) == (other.datasets, other.chunks)
    for name, sums in one.entries.items():
        np.testing.assert_allclose(sums.squares, other.entries[name].squares, rtol=1e-6)
    status, _, errors = imatrix("-o", parts, "--ctx", "16", "--resume")
    assert status == 1
    assert "--resume needs the same texts and --ctx" in errors


def test_another_model_or_other_tokens_are_not_continued(imatrix, golden, tmp_path):
    out, other = tmp_path / "out.gguf", tmp_path / "other.gguf"
    assert imatrix("-o", out, *CHUNKS)[0] == 0
    before = out.read_bytes()
    convert(golden / "stories260K", "Q8_0", other)
    status, _, errors = imatrix("-o", out, *CHUNKS, "--resume", model=other)
    assert (status, out.read_bytes()) == (1, before)
    assert "error: " + str(out) + ": collected from another model" in errors
    sums = read_sums(out)
    write_sums(out, replace(sums, made_from={**sums.made_from, "tokens": "0" * 64}), overwrite=True)
    status, _, errors = imatrix("-o", out, *CHUNKS, "--resume")
    assert status == 1
    assert "collected from other tokens: the texts or --chunks have changed" in errors
    # Files of llama-imatrix do not say it.
    write_sums(out, replace(sums, made_from={}), overwrite=True)
    status, _, errors = imatrix("-o", out, *CHUNKS, "--resume")
    assert status == 0
    assert f"warning: {out}: does not say of which model it is made" in errors


def test_what_is_done_is_saved_now_and_then(imatrix, tmp_path, monkeypatch):
    out = tmp_path / "imatrix.gguf"
    seen = []
    monkeypatch.setattr("quantcli.quality.imatrix.Collector.check", lambda self: seen.append(out.exists()))
    assert imatrix("-o", out, *CHUNKS, "--save-every", "2")[0] == 0
    assert seen == [False, False, True, True]


def test_files_are_merged_without_a_model(imatrix, tmp_path):
    for name in ("a", "b"):
        assert imatrix("-o", tmp_path / name, *CHUNKS)[0] == 0
    merged = ("--merge", tmp_path / "a", "--merge", tmp_path / "b")
    status, said, _ = imatrix("-o", tmp_path / "both", *merged, "--json", model=None)
    assert status == 0
    assert json.loads(said)["chunks"] == 8
    old = tmp_path / "both.dat"
    assert imatrix("-o", old, *merged, "--output-format", "dat", model=None)[0] == 0
    new = read_imatrix(tmp_path / "both").entries
    for name, values in read_imatrix(old).entries.items():
        np.testing.assert_allclose(values, new[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "text", "status", "message"),
    [
        (("-o", "OUT/x.gguf", "--ctx", "8"), "text.txt", 2, "8 is not in the range x>=16"),
        (("-o", "OUT/x.gguf"), "short.txt", 1, "tokens, and chunks of 512 need 1024 or more"),
        (("-o", "OUT/x.gguf"), "latin.txt", 2, "is not UTF-8"),
        (("-o", "OUT/nowhere/x.gguf", *CHUNKS), "text.txt", 1, "the directory does not exist"),
        (("-o", "OUT/there.gguf", *CHUNKS), "text.txt", 1, "exists"),
        (("-o", "OUT/x.gguf", *CHUNKS, "--merge", "OUT/there.gguf"), "text.txt", 1, "there.gguf"),
        ((), "text.txt", 2, "Missing option '-o'"),
    ],
)
def test_wrong_turns_are_a_line(imatrix, tmp_path, words, text, status, message):
    (tmp_path / "there.gguf").write_bytes(b"something")
    found, said, errors = imatrix(*(word.replace("OUT", str(tmp_path)) for word in words), text=text)
    assert (found, said) == (status, "")
    assert errors.startswith("error: ")
    assert message in errors.splitlines()[0]
    assert (tmp_path / "there.gguf").read_bytes() == b"something"
    assert [path.name for path in tmp_path.iterdir()] == ["there.gguf"]


@pytest.mark.parametrize("layout", ["gguf", "dat"])
def test_nothing_that_is_read_is_replaced(golden, folder, tmp_path, capsys, layout):
    model, text, shard = tmp_path / "model.gguf", tmp_path / "text.txt", tmp_path / "checkpoint" / "model.safetensors"
    model.write_bytes((folder / "model.gguf").read_bytes())
    text.write_text(TEXT)
    shutil.copytree(golden / "stories260K", shard.parent)
    for source, output in ((model, model), (model, text), (shard.parent, shard)):
        before = output.read_bytes()
        words = (source, "--text", text, *CHUNKS, "-o", output, "--overwrite", "--output-format", layout)
        status, said, errors = run_command(capsys, "imatrix", *words)
        assert (status, said) == (1, "")
        assert errors.startswith(f"error: {output}: the output would replace ")
        assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "model.gguf", "text.txt"]


@pytest.mark.parametrize("layout", ["gguf", "dat"])
def test_a_full_disk_leaves_what_was_there(imatrix, tmp_path, monkeypatch, layout):
    out = tmp_path / "imatrix"
    out.write_bytes(b"before")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    status, _, errors = imatrix("-o", out, *CHUNKS, "--overwrite", "--output-format", layout)
    assert status == 1
    assert errors.startswith(f"error: {out}: no space left on the disk")
    assert out.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [out]


def test_a_model_without_a_text_is_wrong_usage(folder, tmp_path, capsys):
    status, _, errors = run_command(capsys, "imatrix", folder / "model.gguf", "-o", tmp_path / "x.gguf")
    assert status == 2
    assert errors.startswith("error: MODEL and --text go together")
    status, _, errors = run_command(capsys, "imatrix", "-o", tmp_path / "x.gguf")
    assert (status, errors.splitlines()[0]) == (2, "error: nothing to do")
