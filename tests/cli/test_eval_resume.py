"""`quantize eval --resume`: interrupted evaluations have the figures of uninterrupted ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import run_command
from tiny_encoder import text_of_lines, write_encoder

from quantcli.conversion.convert import convert
from quantcli.runner.model import Model

FEW = ["--ctx", 16, "--chunks", 2]


@pytest.fixture(scope="module")
def files(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval_resume")
    for kind in ("F32", "Q8_0", "Q4_0"):
        convert(golden / "stories260K", kind, folder / f"{kind}.gguf")
        write_encoder(folder, kind).rename(folder / f"bert-{kind}.gguf")
    story = "Once upon a time there was a dog named Max. He liked to play in the park. "
    (folder / "story.txt").write_text(story * 8)
    (folder / "other.txt").write_text(story[20:] * 8)
    (folder / "lines.txt").write_text(text_of_lines(40))
    question = {"prompt": "Once upon a time there was a little", "endings": [" girl.", " xylophone."], "answer": 0}
    (folder / "q.jsonl").write_text("".join(json.dumps(question | {"answer": n}) + "\n" for n in (0, 1, 1)))
    return folder


def requests(files):
    """Two requests, and how many steps each has."""
    pair = ["--text", files / "story.txt", "--text", files / "other.txt", "--subjects", "--choices", files / "q.jsonl"]
    names = ("Q8_0.gguf", "Q4_0.gguf")
    return [
        (["eval", *(files / name for name in names), "--base", files / "F32.gguf", *pair, *FEW], 2 * 2 + 12 * 2 + 3 * 3),
        (
            ["eval", *(files / f"bert-{name}" for name in names), "--base", files / "bert-F32.gguf",
             "--text", files / "lines.txt"],
            3 * 3,
        ),
    ]  # fmt: skip


def figures(out):
    return json.loads(out) | {"seconds": 0}


@pytest.mark.parametrize("number", [0, 1], ids=["predictions", "embeddings"])
def test_figures_are_those_of_an_uninterrupted_run(files, tmp_path, capsys, monkeypatch, number):
    asked, steps = requests(files)[number]
    expected = figures(run_command(capsys, *asked, "--json")[1])
    journal = tmp_path / "progress"
    runs = 0
    hidden, forward = Model.hidden, Model.forward

    def interrupting(method):
        left = 31

        def called(*words, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return method(*words, **options)

        return called

    # Each run is interrupted after the same number of calls: each must get further than the last.
    done = [0]
    for _ in range(steps):
        monkeypatch.setattr(Model, "hidden", interrupting(hidden))
        monkeypatch.setattr(Model, "forward", interrupting(forward))
        status, out, _ = run_command(capsys, *asked, "--json", "--resume", journal)
        runs += 1
        if status == 0:
            break
        assert (status, out) == (130, "")
        done.append(journal.read_bytes().count(b"\n") - 1)
        assert done[-1] > done[-2]
    assert runs > 2
    assert figures(out) == expected
    assert not journal.exists()
    monkeypatch.setattr(Model, "hidden", hidden)
    monkeypatch.setattr(Model, "forward", forward)
    status, out, _ = run_command(capsys, *asked, "--json", "--resume", journal)
    assert (status, figures(out)) == (0, expected)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_killed_evaluation_continues(files, tmp_path, capsys):
    text, journal = tmp_path / "long.txt", tmp_path / "progress"
    text.write_text((files / "story.txt").read_text() * 40)
    words = ["eval", files / "Q4_0.gguf", "--text", text, "--base", files / "F32.gguf", "--ctx", 64, "--resume", journal]
    process = subprocess.Popen(
        [sys.executable, "-m", "quantcli", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (-signal.SIGKILL, b"")
    kept = journal.read_bytes().count(b"\n") - 1
    status, out, _ = run_command(capsys, *words, "--json")
    assert status == 0
    found = json.loads(out)
    assert 3 <= kept < found["chunks"]
    assert figures(out) == figures(run_command(capsys, *words[:-2], "--json")[1])


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"--ctx": 32}, "--ctx"),
        ({"--chunks": 1}, "--chunks"),
        ({"--text": "other.txt"}, "the text"),
        ({"--base": "Q8_0.gguf"}, "Q8_0.gguf"),
        ({"--weights": "Q8_0"}, "--weights"),
    ],
)
def test_another_request_is_refused_by_name(files, tmp_path, capsys, monkeypatch, changes, differs):
    monkeypatch.chdir(files)
    journal = tmp_path / "progress"
    options = {"--ctx": 16, "--chunks": 2, "--text": "story.txt", "--base": "F32.gguf", "--resume": journal}

    def asked(options):
        return ["eval", "Q4_0.gguf", *(word for option in options.items() for word in option)]

    def interrupted(*words, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Model, "forward", interrupted)
        assert run_command(capsys, *asked(options))[0] == 130
    status, out, err = run_command(capsys, *asked(options | changes))
    assert (status, out) == (1, "")
    message = next(line for line in err.splitlines() if line.startswith("error: "))
    assert message.startswith(f"error: {journal}: this is the progress of another evaluation; what differs: {differs}")


def test_a_changed_file_is_refused(files, tmp_path, capsys, monkeypatch):
    model, journal = tmp_path / "model.gguf", tmp_path / "progress"
    model.write_bytes((files / "Q4_0.gguf").read_bytes())
    asked = ["eval", model, "--text", files / "story.txt", *FEW, "--resume", journal]

    def interrupted(*words, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Model, "forward", interrupted)
        assert run_command(capsys, *asked)[0] == 130
    os.utime(model, ns=(1, 1))
    status, _, err = run_command(capsys, *asked)
    assert status == 1
    assert f"what differs: {model}" in err
