"""Tokenizing against what llama.cpp gives for the same texts and vocabularies."""

from __future__ import annotations

import json

import pytest

from quantcli.formats.gguf_reader import open_gguf
from quantcli.runner.tokenizer import StreamDecoder, load_tokenizer


@pytest.mark.parametrize("name", ["llama-spm", "phi-3"])
def test_equals_reference_tokenizer(shared, name):
    folder = shared / "golden" / "tokenization"
    with open_gguf(folder / f"{name}.vocab.gguf") as file:
        tokenizer = load_tokenizer(file.metadata)
    for case in json.loads((folder / f"{name}.json").read_text()):
        ids = tokenizer.encode(case["text"], add_special=False)
        assert ids == case["tokens"], case["text"]
        assert tokenizer.decode(ids) == case["text"]
        decoder = StreamDecoder(tokenizer)
        streamed = "".join(decoder.push(id_) for id_ in ids) + decoder.finish()
        assert streamed == b"".join(map(tokenizer.piece, ids)).decode()
