"""`quantize tokenize`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from quantcli.cli.commands.tokenize import command


@pytest.fixture
def vocabulary(shared):
    return str(shared / "golden" / "tokenization" / "llama-bpe.vocab.gguf")


def tokenize(*arguments, text=None):
    return CliRunner().invoke(command, list(arguments), input=text, catch_exceptions=False)


def document(*arguments, text=None):
    return json.loads(tokenize(*arguments, "--json", text=text).stdout)


def test_json_holds_ids_and_pieces(vocabulary):
    assert document(vocabulary, "Hello world") == {
        "tokens": [128000, 9906, 1917],
        "pieces": ["<|begin_of_text|>", "Hello", " world"],
    }


def test_no_bos(vocabulary):
    assert document(vocabulary, "Hello world", "--no-bos")["tokens"] == [9906, 1917]


def test_special_texts_become_tokens_unless_told_otherwise(vocabulary):
    assert document(vocabulary, "<|eot_id|>", "--no-bos")["tokens"] == [128009]
    plain = document(vocabulary, "<|eot_id|>", "--no-bos", "--no-parse-special")
    assert len(plain["tokens"]) > 1
    assert "".join(plain["pieces"]) == "<|eot_id|>"


def test_reads_standard_input(vocabulary):
    assert document(vocabulary, "-", text="Hello world") == document(vocabulary, "Hello world")


def test_bytes_that_are_no_utf8_are_read_as_replacement_characters(vocabulary):
    expected = document(vocabulary, "a\ufffd\ufffdb")
    assert document(vocabulary, "-", text=b"a\xed\xa0b") == expected
    # As Python gives them in arguments.
    assert document(vocabulary, "a\udced\udca0b") == expected
    assert document(vocabulary, "a\ud83db")["tokens"] == document(vocabulary, "a\ufffdb")["tokens"]


def test_table_shows_bytes_that_are_no_characters(vocabulary):
    lines = tokenize(vocabulary, "🚀\n", "--no-bos").stdout.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["9468", r"\xf0\x9f"],
        ["248", r"\x9a"],
        ["222", r"\x80"],
        ["198", r"\n"],
    ]
