"""Tokenizing against what llama.cpp gives for the same texts and vocabularies, and against the models' own tokenizers."""

from __future__ import annotations

import json

import pytest
from texts import random_texts

from quantcli.conversion.vocabulary import vocabulary_metadata
from quantcli.formats.checkpoint import Checkpoint
from quantcli.formats.gguf_reader import open_gguf
from quantcli.runner.tokenizer import StreamDecoder, load_tokenizer

FUZZED = 300


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "gpt-2", "llama-bpe", "qwen2", "falcon", "starcoder"])
def test_equals_reference_tokenizer(shared, name):
    folder = shared / "golden" / "tokenization"
    with open_gguf(folder / f"{name}.vocab.gguf") as file:
        tokenizer = load_tokenizer(file.metadata)
    for case in json.loads((folder / f"{name}.json").read_text(encoding="utf-8")):
        ids = tokenizer.encode(case["text"], add_special=False)
        assert ids == case["tokens"], case["text"]
        assert tokenizer.decode(ids) == case["text"]
        decoder = StreamDecoder(tokenizer)
        streamed = "".join(decoder.push(id_) for id_ in ids) + decoder.finish()
        assert streamed == b"".join(map(tokenizer.piece, ids)).decode()


def converted(directory):
    """The tokenizer after the whole way: the files of a model, converted to GGUF metadata, loaded from it."""
    return load_tokenizer(vocabulary_metadata(Checkpoint(directory, directory, {}, {}), None))


@pytest.mark.parametrize("name", ["llama-3.2", "gpt2", "qwen2.5", "starcoder2", "falcon"])
def test_equals_the_models_own_byte_level_tokenizer(shared, name):
    from tokenizers import Tokenizer

    directory = shared / "tokenizers" / name
    own = Tokenizer.from_file(str(directory / "tokenizer.json"))
    own.normalizer = None  # GGUF has none; qwen2.5 would compose characters
    tokenizer = converted(directory)
    special = [token.content for token in own.get_added_tokens_decoder().values()][:20]
    for text in random_texts(1, FUZZED, special):
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        assert ids == own.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(ids, special=True) == text


@pytest.mark.parametrize("name", ["llama-2", "mistral-v0.3"])
def test_equals_sentencepiece(shared, name):
    from sentencepiece import SentencePieceProcessor

    directory = shared / "tokenizers" / name
    own = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    tokenizer = converted(directory)
    for text in random_texts(2, FUZZED):
        ids = tokenizer.encode(text, add_special=False)
        assert ids == own.encode(text), text
        assert tokenizer.decode(ids) == text
