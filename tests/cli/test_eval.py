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
from quantcli.formats.gguf.spec import u32

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
    assert beside["kl_divergence"].keys() == {"mean", "stderr", "median", "p99", "p999", "max"}
    assert beside.keys() - plain.keys() == {
        "base", "base_perplexity", "base_stderr", "log_perplexity_ratio", "kl_divergence", "same_top", "same_top_stderr",
        "rms_probability_change",
    }  # fmt: skip
    assert 0 < beside["kl_divergence"]["median"] <= beside["kl_divergence"]["max"] < 1
    assert 0.5 < beside["same_top"] <= 1
    status, out, _ = run_command(capsys, *asked)
    assert json.loads(out)["chunks"] > 2


def test_an_evaluation_reads_well(files, capsys):
    asked = ["eval", files / "F32.gguf", "--text", files / "story.txt", "--ctx", 32, "--chunks", 2]
    status, out, err = run_command(capsys, *asked, "--base", files / "F32.gguf")
    assert (status, err) == (0, "")
    labels = [line.split("  ")[0] for line in out.splitlines()]
    assert labels == [
        "Perplexity", "Base perplexity", "KL divergence", "KL 99.9%", "Same top token", "Standard errors", "RMS Δp",
        "Log ratio", "Scored",
    ]  # fmt: skip
    assert "a change of +0.000%" in out
    assert "mean 0.000000" in out
    assert "30 tokens in 2 chunks of 32" in out
    assert run_command(capsys, *asked)[1].splitlines()[1].startswith("Scored")


def test_several_files_and_texts_are_rows(files, capsys):
    (files / "other.txt").write_text(STORY[50:])
    asked = ["eval", files / "F32.gguf", files / "Q8_0.gguf", "--text", files / "story.txt", "--text", files / "other.txt"]
    asked += ["--ctx", 32, "--chunks", 2, "--base", files / "F32.gguf"]
    status, out, err = run_command(capsys, *asked, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found.keys() == {"base", "context", "seconds", "results", "differences"}
    names = [str(files / name) for name in ("F32.gguf", "Q8_0.gguf", "story.txt", "other.txt")]
    rows = [(row["text"], row["path"]) for row in found["results"]]
    assert rows == [(text, file) for text in names[2:] for file in names[:2]]
    assert [(row["text"], row["first"], row["path"]) for row in found["differences"]] == [
        (text, names[0], names[1]) for text in names[2:]
    ]
    for (first, second), difference in zip((found["results"][:2], found["results"][2:]), found["differences"], strict=True):
        change = difference["kl_divergence"]
        assert change["mean"] == pytest.approx(second["kl_divergence"]["mean"] - first["kl_divergence"]["mean"])
        assert change["interval_95"] == pytest.approx(
            [change["mean"] + side * change["stderr"] for side in (-1.96, 1.96)], 1e-4
        )
    status, out, err = run_command(capsys, *asked)
    assert (status, err) == (0, "")
    assert out.count("Q8_0.gguf  ") == 4
    assert "story.txt: 30 tokens in 2 chunks of 32, divergence from " in out
    assert out.count("with 95 % confidence intervals") == 2
    status, out, _ = run_command(capsys, *asked[:-2])
    assert status == 0
    assert "KL divergence" not in out
    assert "log perplexity" in out


def test_a_wrong_base_is_one_line(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("quantcli.runner.load.Model", lambda *_, **__: pytest.fail("a model was loaded"))
    other = write_changed(files / "F32.gguf", tmp_path / "other.gguf", {"llama.block_count": u32(4)})
    status, out, err = run_command(capsys, "eval", files / "F32.gguf", "--text", files / "story.txt", "--base", other)
    assert (status, out) == (1, "")
    assert "are different models: 5 layers and 4 layers" in err.splitlines()[0]


def test_a_quantized_base_is_a_warning(files, capsys):
    asked = ["eval", files / "F32.gguf", "--text", files / "story.txt", "--ctx", 32, "--chunks", 1]
    status, _, err = run_command(capsys, *asked, "--base", files / "Q8_0.gguf")
    assert status == 0
    assert "the base is itself quantized" in err


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
