"""`quantize run` as a user meets it: what is printed where, and how bad requests end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from changed_file import write_changed, write_chat
from command_line import run_command

from quantcli.conversion.convert import convert
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import string
from quantcli.formats.gguf.writer import GGUFWriter

STORY = ", there was a little girl named Lily. She lo"  # 13 tokens of llama.cpp's


@pytest.fixture(scope="module")
def stories(golden, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "stories.gguf"
    convert(golden / "stories260K", "F32", path)
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Status, stdout and stderr of the command."""
    return run_command(capsys, "run", *arguments)


def test_text_goes_to_stdout_and_nothing_else(stories, capsys):
    status, out, err = run(capsys, stories, "--prompt", "Once upon a time", "-n", 13, "--temp", 0)
    assert (status, out, err) == (0, STORY + "\n", "")


def test_json_is_one_document(stories, capsys):
    status, out, err = run(capsys, stories, "--prompt", "Once upon a time", "-n", 13, "--temp", 0, "--json")
    document = json.loads(out)
    assert (status, err) == (0, "")
    assert document["prompt_tokens"] == [1, 403, 407, 261, 378]
    assert document["tokens"][:5] == [432, 383, 286, 261, 376]
    assert len(document["tokens"]) == 13
    assert document["text"] == STORY
    assert document["stopped"] == "limit"
    assert min(document[f"{key}tokens_per_second"] for key in ("", "prompt_")) > 0
    assert document["load_seconds"] > 0
    assert document["weights_bytes"] == 4 * 260032
    assert document["cache_bytes"] == 5 * 2 * 4 * 8 * 2 * 17  # layers, keys and values, heads, numbers, bytes, tokens


def test_a_full_context_is_said(stories, capsys):
    status, out, err = run(capsys, stories, "--prompt", "Once upon a time", "--temp", 0, "--ctx", 12)
    assert status == 0
    assert out.startswith(", there")
    assert "context of 12 tokens is full" in err


def test_stop_strings_and_penalties_shape_the_answer(stories, capsys):
    asked = [stories, "--prompt", "Once upon a time", "-n", 40, "--temp", 0]
    assert run(capsys, *asked, "--stop", "xyz", "--stop", " girl") == (0, ", there was a little\n", "")
    plain, penalized = run(capsys, *asked), run(capsys, *asked, "--repeat-penalty", 1.5, "--repeat-last-n", -1)
    assert plain[0] == penalized[0] == 0
    assert plain[1] != penalized[1]
    assert run(capsys, *asked, "--presence-penalty", 2, "--frequency-penalty", 1)[1] != plain[1]
    assert run(capsys, *asked[:-1], 1, "--typical", 0.001, "--seed", 1)[0] == 0


def test_the_prompt_may_come_from_a_file(stories, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text("Once upon a time\n")
    asked = [stories, "--prompt-file", tmp_path / "prompt.txt", "-n", 13, "--temp", 0]
    assert run(capsys, *asked) == (0, STORY + "\n", "")
    (tmp_path / "prompt.txt").write_bytes(b"a\xff")
    status, _, err = run(capsys, *asked)
    assert status == 2
    assert "prompt.txt: the prompt is not UTF-8 (byte 1)" in err


def test_one_message_is_answered_by_the_template(stories, tmp_path, capsys):
    chat = write_chat(stories, tmp_path / "chat.gguf")
    asked = [chat, "--chat", "--prompt", " a time", "--system", "Once upon", "-n", 13, "--temp", 0]
    assert run(capsys, *asked) == (0, STORY + "\n", "")


def test_a_full_context_is_shifted_where_that_is_asked_for(stories, capsys):
    asked = [stories, "--prompt", "Once upon a time", "--temp", 0, "--ctx", 12, "-n", 60, "--ignore-eos", "--context-shift"]
    status, out, err = run(capsys, *asked, "--json")
    assert (status, err) == (0, "")
    assert len(json.loads(out)["tokens"]) == 60
    kept = json.loads(run(capsys, *asked, "--json", "--keep", -1)[1])
    assert kept["tokens"] != json.loads(out)["tokens"]


def test_weights_may_be_quantized_and_the_cache_small(stories, capsys):
    asked = [stories, "--prompt", "Once upon a time", "-n", 13, "--temp", 0, "--json"]
    plain = json.loads(run(capsys, *asked)[1])
    status, out, err = run(capsys, *asked, "--weights", "q8_0", "--cache-type", "q8_0")
    small = json.loads(out)
    assert (status, err) == (0, "")
    assert small["text"].startswith(", there was a little girl")
    assert small["weights_bytes"] < plain["weights_bytes"] / 2
    assert small["cache_bytes"] == 5 * 2 * 4 * 34 * 17  # a head of 8 numbers takes a block of 32


def test_a_context_beyond_training_is_a_warning(stories, capsys):
    status, _, err = run(capsys, stories, "--prompt", "Once", "--temp", 0, "--ctx", 1000, "-n", 1)
    assert status == 0
    assert "longer than the trained context length, 512" in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--prompt", ""], 1, "the prompt is empty"),
        (["--prompt", "Once upon a time", "--ctx", "3"], 1, "too many for an answer"),
        (["--prompt", "a", "--chat"], 1, "no chat template"),
        (["--prompt", "a", "--system", "b"], 2, "--system has no effect without --chat"),
        (["--prompt", "a", "--top-p", "7"], 2, "top-p is 7.0"),
        (["--prompt", "a", "--temp", "nan"], 2, "temperature is nan"),
        (["--prompt", "a", "--cache-type", "f8"], 2, "unknown cache type 'f8'"),
        (["--prompt", "a", "--ctx", "0"], 2, "--ctx"),
        (["--prompt", "\udcff"], 2, "not UTF-8"),
        (["--prompt", "a", "--prompt-file", __file__], 2, "exclude each other"),
        (["--prompt-file", "no-such-file"], 2, "no-such-file"),
        (["--prompt", "a", "--stop", ""], 2, "stop string is empty"),
        (["--prompt", "a", "--keep", "3"], 2, "--keep has no effect without --context-shift"),
        (["--prompt", "Once upon", "--context-shift", "--keep", "9", "--ctx", "10"], 2, "cannot be shifted and keep 9"),
        (["--prompt", "a", "--weights", "Q4_K_M"], 2, "did you mean Q4_K"),
        (["--prompt", "a", "--typical", "0"], 2, "typical-p is 0.0"),
        (["--prompt", "a", "--repeat-last-n", "-5"], 2, "repeat-last-n is -5"),
    ],
)
def test_bad_requests_end_with_one_line(stories, capsys, arguments, status, message):
    found, out, err = run(capsys, stories, *arguments)
    assert (found, out) == (status, "")
    assert err.startswith("error: ")
    assert message in err.splitlines()[0]
    assert "Traceback" not in err


def test_files_that_are_no_models(tmp_path, golden, capsys):
    status, _, err = run(capsys, tmp_path / "absent.gguf", "--prompt", "a")
    assert status == 1
    assert "absent.gguf" in err
    (tmp_path / "text.gguf").write_text("hello")
    assert run(capsys, tmp_path / "text.gguf", "--prompt", "a")[0] == 1
    status, _, err = run(capsys, golden / "imatrix.gguf", "--prompt", "a")
    assert status == 1
    assert "cannot be run by itself: general.type is 'imatrix', expected 'model'" in err


def test_files_that_are_parts_of_models(stories, tmp_path, capsys):
    adapter = write_changed(stories, tmp_path / "adapter.gguf", {"general.type": string("adapter")})
    with open_gguf(stories) as file, GGUFWriter(tmp_path / "vocabulary.gguf", file.metadata, []):
        pass
    for path, message in (
        (adapter, "cannot be run by itself: general.type is 'adapter'"),
        (tmp_path / "vocabulary.gguf", "cannot be run: it has no tensors"),
    ):
        status, out, err = run(capsys, path, "--prompt", "a")
        assert (status, out) == (1, "")
        assert err.startswith(f"error: {path}: {message}")


def test_models_without_what_the_request_needs(stories, tmp_path, capsys):
    bare = write_changed(stories, tmp_path / "bare.gguf", {"tokenizer.ggml.model": None})
    status, out, err = run(capsys, bare, "--prompt", "a")
    assert (status, out, err) == (1, "", "error: the file has no tokenizer: no tokenizer.ggml.model")
    broken = write_chat(stories, tmp_path / "broken.gguf", "{% for %}")
    status, out, err = run(capsys, broken, "--chat", "--prompt", "a")
    assert (status, out) == (1, "")
    assert err.startswith("error: the file's chat template is broken in line 1")


def quantize(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", "from quantcli.cli.main import main; main()", "run", *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes | options)


def test_the_prompt_may_come_from_stdin(stories):
    process = quantize(stories, "--prompt", "-", "--temp", 0, "-n", 13)
    out, _ = process.communicate(b"Once upon a time\n", timeout=120)
    assert (process.returncode, out.decode()) == (0, STORY + "\n")
    process = quantize(stories, "--temp", 0, "-n", 13, "--json")
    out, _ = process.communicate(b"Once upon a time\n", timeout=120)
    assert (process.returncode, json.loads(out)["text"]) == (0, STORY)
    process = quantize(stories)
    _, err = process.communicate(b"", timeout=120)
    assert process.returncode == 1
    assert b"the prompt is empty" in err
    process = quantize(stories, "--prompt", "-")
    _, err = process.communicate(b"\xff", timeout=120)
    assert process.returncode == 2
    assert b"not UTF-8 (byte 0)" in err


def test_a_terminal_without_the_characters_gets_question_marks(stories):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    process = quantize(stories, "--prompt", "é", "--temp", 2, "--top-k", 0, "-n", 60, "--seed", 1, env=environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.isascii()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send")
def test_an_interrupt_keeps_the_answer_so_far_and_ends_quietly(stories):
    process = quantize(stories, "--prompt", "Once", "--temp", 50, "--top-k", 0, "--min-p", 0, "--top-p", 1, "--ctx", 50000)
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the model had finished its story by then")
    assert process.returncode == 130
    assert first + out
    assert out.endswith(b"\n")
    assert b"Traceback" not in err


def test_an_interrupted_document_is_an_error_and_nothing_else(stories, monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("quantcli.runner.text.generate.Generation.__iter__", interrupted)
    status, out, err = run(capsys, stories, "--prompt", "Once", "--json")
    assert (status, out, err.strip()) == (130, "", "error: interrupted")
