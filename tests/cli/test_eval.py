"""`quantize eval` and `quantize bench` as a user meets them; `quality` and `runner` test the figures themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from changed_file import write_changed
from command_line import run_command

from quantcli.conversion.convert import convert

STORY = "Once upon a time there was a little dog named Max. He liked to play with a big red ball in the park. " * 4


@pytest.fixture(scope="module")
def files(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    for kind in ("F32", "Q8_0"):
        convert(golden / "stories260K", kind, folder / f"{kind}.gguf")
    (folder / "story.txt").write_text(STORY)
    return folder


def test_an_evaluation_is_one_document(files, capsys):
    asked = ["eval", files / "Q8_0.gguf", "--text", files / "story.txt", "--ctx", 32, "--json"]
    status, out, err = run_command(capsys, *asked, "--chunks", 2)
    plain = json.loads(out)
    assert (status, err) == (0, "")
    assert plain.keys() == {"path", "perplexity", "stderr", "tokens", "chunks", "context", "seconds"}
    assert (plain["tokens"], plain["chunks"], plain["context"]) == (30, 2, 32)
    assert plain["perplexity"] > 1
    status, out, err = run_command(capsys, *asked, "--chunks", 2, "--base", files / "F32.gguf")
    beside = json.loads(out)
    assert (status, err) == (0, "")
    assert beside["perplexity"] == plain["perplexity"]
    assert beside["base_perplexity"] != plain["perplexity"]
    assert beside["kl_divergence"].keys() == {"mean", "median", "p99", "max"}
    assert 0 < beside["kl_divergence"]["median"] <= beside["kl_divergence"]["max"] < 1
    assert 0.5 < beside["same_top"] <= 1
    status, out, _ = run_command(capsys, *asked)
    assert json.loads(out)["chunks"] > 2


def test_an_evaluation_reads_well(files, capsys):
    asked = ["eval", files / "F32.gguf", "--text", files / "story.txt", "--ctx", 32, "--chunks", 2]
    status, out, err = run_command(capsys, *asked, "--base", files / "F32.gguf")
    assert (status, err) == (0, "")
    labels = [line.split("  ")[0] for line in out.splitlines()]
    assert labels == ["Perplexity", "Base perplexity", "KL divergence", "Same top token", "Scored"]
    assert "a change of +0.000%" in out
    assert "mean 0.000000" in out
    assert "30 tokens in 2 chunks of 32" in out
    assert run_command(capsys, *asked)[1].splitlines()[1].startswith("Scored")


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"--ctx": "512"}, 1, "needs 1024 or more"),
        ({"--ctx": "2"}, 2, "--ctx"),
        ({"--chunks": "0"}, 2, "--chunks"),
        ({"--text": "no-such-file"}, 2, "no-such-file"),
        ({"--text": None}, 2, "--text"),
        ({"--base": "no-such-file.gguf"}, 1, "no-such-file.gguf"),
        ({"--text": "Q8_0.gguf"}, 2, "is not UTF-8"),
    ],
)
def test_bad_requests_end_with_one_line(files, capsys, monkeypatch, changes, status, message):
    monkeypatch.chdir(files)
    options = {"--text": "story.txt", "--ctx": "32"} | changes
    words = [word for option, value in options.items() if value is not None for word in (option, value)]
    found, out, err = run_command(capsys, "eval", "F32.gguf", *words)
    assert (found, out) == (status, "")
    assert err.startswith("error: ")
    assert message in err.splitlines()[0]


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send")
def test_an_interrupted_evaluation_ends_in_one_line(files):
    command = [sys.executable, "-u", "-m", "quantcli", "eval", files / "F32.gguf", "--text", "-", "--ctx", "64"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    # It has read the text when it takes more than a pipe holds; from then on there are minutes of work.
    process.stdin.write((STORY * 2000).encode())
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == b""
    assert err.decode().splitlines()[-1] == "error: interrupted"
    assert b"Traceback" not in err


def test_speeds_are_a_markdown_table_and_one_document(files, tmp_path, capsys):
    # Measuring needs no tokenizer.
    bare = write_changed(files / "F32.gguf", tmp_path / "bare.gguf", {"tokenizer.ggml.model": None})
    asked = ["bench", bare, "-p", 8, "-n", 2, "-n", 3, "-d", 0, "-d", 5, "-r", 2, "--threads", 1]
    status, out, err = run_command(capsys, *asked)
    assert (status, err) == (0, "")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    assert rows[0] == ["model", "size", "params", "threads", "test", "t/s"]
    assert [row[4] for row in rows[2:]] == ["pp8", "pp8 @ d5", "tg2", "tg3", "tg2 @ d5", "tg3 @ d5"]
    assert all(row[:4] == ["bare.gguf", "1015.75 KiB", "260.03 K", "1"] for row in rows[2:])
    assert len({line.count("|") for line in out.splitlines()}) == 1
    status, out, err = run_command(capsys, *asked, "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["architecture"] == "llama"
    assert document["threads"] == 1
    first = document["results"][0]
    assert (first["test"], first["prompt"], first["generated"], first["depth"]) == ("pp8", 8, 0, 0)
    assert len(first["samples"]) == 2
    assert min(first["samples"]) <= first["tokens_per_second"] <= max(first["samples"])
    assert first["stddev"] == pytest.approx(abs(first["samples"][0] - first["samples"][1]) / 2**0.5)


def test_more_than_there_is_memory_for_is_refused_before_anything_is_shown(files, capsys):
    for asked in (["-p", 10**14], ["-p", 0, "-n", 4, "-d", 10**14]):
        status, out, err = run_command(capsys, "bench", files / "F32.gguf", *asked)
        assert (status, out) == (1, "")
        assert err.startswith("error: out of memory for a context of 1000000000")


def test_nothing_to_measure_is_said(files, capsys):
    status, out, err = run_command(capsys, "bench", files / "F32.gguf", "-p", 0, "-n", 0)
    assert (status, out) == (2, "")
    assert "nothing to measure" in err
    assert run_command(capsys, "bench", files / "F32.gguf", "--cache-type", "q3")[0] == 2
