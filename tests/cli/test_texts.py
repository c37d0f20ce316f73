"""Texts of users: which bytes of a file are part of them, and where a line ends."""

from __future__ import annotations

import codecs
import io
import json
import sys
from types import SimpleNamespace

import pytest
from command_line import run_command

from quantcli.cli.texts import lines, read_text
from quantcli.conversion.convert import convert
from quantcli.conversion.plan import parse_overrides
from quantcli.core.errors import UsageError

NO_LINE_ENDS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029\r"


@pytest.fixture(scope="module")
def stories(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "stories.gguf"
    convert(golden / "stories260K", "F32", path)
    return path


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"Once", "Once"),
        (b"Once\n", "Once"),
        (b"Once\n\n", "Once\n"),
        (b"a\r\nb\r\n", "a\r\nb\r"),  # as llama.cpp's --file
        (codecs.BOM_UTF8 + "é\n".encode(), "é"),
        (codecs.BOM_UTF8 * 2, "\ufeff"),
        ("a\ufeffb".encode(), "a\ufeffb"),
        (codecs.BOM_UTF8, ""),
        (b"", ""),
        (NO_LINE_ENDS.encode(), NO_LINE_ENDS),
    ],
)
def test_a_text_is_its_bytes_without_a_mark_and_the_last_newline(tmp_path, monkeypatch, data, text):
    (tmp_path / "text").write_bytes(data)
    assert read_text(tmp_path / "text", "the text") == text
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert read_text(None, "the text") == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("aé".encode("utf-16"), "is UTF-16, expected UTF-8"),
        (codecs.BOM_UTF16_BE + "a".encode("utf-16-be"), "is UTF-16, expected UTF-8"),
        ("aé".encode("utf-32"), "is UTF-32, expected UTF-8"),
        (codecs.BOM_UTF32_BE + "a".encode("utf-32-be"), "is UTF-32, expected UTF-8"),
        (b"ab\xff", "is not UTF-8 (byte 2)"),
        (codecs.BOM_UTF8 + b"ab\xff", "is not UTF-8 (byte 5)"),
    ],
)
def test_other_encodings_are_refused_by_name(tmp_path, data, message):
    (tmp_path / "text").write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read_text(tmp_path / "text", "the text")
    assert str(caught.value) == f"{tmp_path / 'text'}: the text {message}"


def test_only_a_newline_ends_a_line():
    assert lines(f"a{NO_LINE_ENDS}b\r\nc\n\nd") == [f"a{NO_LINE_ENDS}b", "c", "", "d"]
    assert lines("a\r\r\n") == ["a\r", ""]


def test_texts_to_embed_are_those_lines(stories, tmp_path, capsys):
    (tmp_path / "texts").write_bytes(codecs.BOM_UTF8 + f"one{NO_LINE_ENDS}two\r\nthree\n\n \nfour\n".encode())
    status, out, err = run_command(capsys, "embed", stories, "--text", tmp_path / "texts", "--json")
    assert (status, err) == (0, "")
    found = [entry["tokens"] for entry in json.loads(out)["embeddings"]]
    alone = [*("-p", f"one{NO_LINE_ENDS}two"), *("-p", "three"), *("-p", "four")]
    expected = json.loads(run_command(capsys, "embed", stories, *alone, "--json")[1])["embeddings"]
    assert found == [entry["tokens"] for entry in expected]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_prompt_file_is_read_as_llama_cpp_reads_it(stories, tmp_path, capsys, line_end):
    def prompt(*words):
        status, out, _ = run_command(capsys, "run", stories, *words, "-n", 0, "--json")
        return status, json.loads(out)["prompt_tokens"] if out else None

    text = f"Once{line_end}upon"
    (tmp_path / "prompt").write_bytes(codecs.BOM_UTF8 + text.encode() + b"\n")
    assert prompt("-f", tmp_path / "prompt") == prompt("-p", text)
    (tmp_path / "prompt").write_bytes(text.encode("utf-16"))
    status, _, err = run_command(capsys, "run", stories, "-f", tmp_path / "prompt")
    assert (status, err.splitlines()) == (
        2,
        [f"error: {tmp_path / 'prompt'}: the prompt is UTF-16, expected UTF-8", "hint: iconv -f UTF-16 -t UTF-8"],
    )


def test_a_list_of_types_is_words_of_ascii(golden, tmp_path, capsys):
    assert [one.type.name for one in parse_overrides("a=Q8_0\r\n\vb=F16\fc\u00a0\u2028d=Q4_0\t")] == ["Q8_0", "F16", "Q4_0"]
    asked = [golden / "stories260K", "--type", "F16", "--dry-run", "--json", "--tensor-type-file", tmp_path / "types"]
    (tmp_path / "types").write_bytes(codecs.BOM_UTF8 + b"attn_q=Q8_0\r\n")
    status, out, _ = run_command(capsys, *asked)
    assert status == 0
    assert "Q8_0" in out
    (tmp_path / "types").write_bytes(b"attn_q=\xff")
    status, _, err = run_command(capsys, *asked)
    assert (status, err) == (2, f"error: {tmp_path / 'types'}: the tensor type file is not UTF-8 (byte 7)")
