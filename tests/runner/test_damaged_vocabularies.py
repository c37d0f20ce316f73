"""Vocabularies that lack something, have too much of it, or hold what is no text."""

from __future__ import annotations

import json
import warnings

import pytest
from changed_file import write_changed
from command_line import run_command

from quantcli.core.errors import ModelError, QuantcliWarning
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import ValueType, array, boolean, string, u32
from quantcli.formats.gguf.vocabulary import BYTES
from quantcli.runner.load import load_model
from quantcli.runner.text.tokenizer import load_tokenizer

NORMAL, UNKNOWN, CONTROL = 1, 2, 3
NAN = float("nan")
TEXT = "We've 1234567 reasons: it's 12.5% <ok>"


def metadata(model, tokens, **more):
    """A vocabulary of (text, type, score)."""
    texts, types, scores = zip(*tokens, strict=True)
    return {
        "tokenizer.ggml.model": string(model),
        "tokenizer.ggml.tokens": array(ValueType.STRING, list(texts)),
        "tokenizer.ggml.token_type": array(ValueType.INT32, list(types)),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, list(scores)),
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def sentencepiece(**more):
    head = [("<unk>", UNKNOWN, 0.0), ("<s>", CONTROL, 0.0), ("</s>", CONTROL, 0.0)]
    return metadata("llama", [*head, ("▁a", NORMAL, -1.0), ("b", NORMAL, -2.0), ("▁", NORMAL, -3.0)], **more)


def unigram(**more):
    head = [("<pad>", CONTROL, 0.0), ("</s>", CONTROL, 0.0), ("<unk>", UNKNOWN, 0.0)]
    return metadata("t5", [*head, ("▁a", NORMAL, -1.0), ("b", NORMAL, -2.0), ("▁", NORMAL, -3.0)], **more)


def word_piece(**more):
    head = [("[UNK]", UNKNOWN, 0.0), ("[CLS]", CONTROL, 0.0), ("[SEP]", CONTROL, 0.0)]
    tokens = [*head, ("▁a", NORMAL, 0.0), ("b", NORMAL, 0.0)]
    ids = {"bos_token_id": u32(1), "seperator_token_id": u32(2), "unknown_token_id": u32(0)}
    return metadata("bert", tokens, **ids, **more)


def byte_level(*texts, merges=(), **more):
    tokens = [(letter, NORMAL, 0.0) for letter in BYTES] + [(text, NORMAL, 0.0) for text in texts]
    given = {"merges": array(ValueType.STRING, list(merges)), "pre": string("gpt-2"), "bos_token_id": u32(256)}
    return metadata("gpt2", [*tokens, ("<|begin|>", CONTROL, 0.0)], **{**given, **more})


KINDS = [sentencepiece, unigram, word_piece, byte_level]


def lengthened(vocabulary, key, item):
    field = vocabulary[f"tokenizer.ggml.{key}"]
    return {**vocabulary, f"tokenizer.ggml.{key}": array(field.element, [*field.content, item, item])}


@pytest.mark.parametrize("key", ["token_type", "scores"])
@pytest.mark.parametrize("kind", KINDS)
def test_types_and_scores_beyond_the_tokens_are_of_none(kind, key):
    for item in (1, 3, 0) if key == "token_type" else (0.0, -50.0, NAN):
        tokenizer = load_tokenizer(lengthened(kind(), key, item))
        assert tokenizer.encode("a b a") == load_tokenizer(kind()).encode("a b a")


@pytest.mark.parametrize("kind", [sentencepiece, unigram])
def test_scores_that_are_no_numbers_are_refused(kind):
    scores = kind()["tokenizer.ggml.scores"].content
    changed = kind(scores=array(ValueType.FLOAT32, [*scores[:4], NAN, scores[5]]))
    with pytest.raises(ModelError, match="the score of token 4 is nan"):
        load_tokenizer(changed)
    for score in (1e39, -1e300):
        with pytest.raises(ModelError, match="expected a 32-bit float"):
            load_tokenizer(kind(scores=array(ValueType.FLOAT64, [*scores[:5], score])))
    load_tokenizer(kind(scores=array(ValueType.FLOAT32, [*scores[:5], float("-inf")]))).encode("a b")


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_is_no_text_leaves_the_others_as_they_are(kind):
    plain = kind()
    texts = list(plain["tokenizer.ggml.tokens"].content)
    stray = {"token_type": 1, "scores": -1.0, "tokens": "\udcff\udc80"}
    changed = {**plain}
    for key, item in stray.items():
        changed = {**changed, **{f"tokenizer.ggml.{key}": lengthened(changed, key, item)[f"tokenizer.ggml.{key}"]}}
    changed["tokenizer.ggml.tokens"] = array(ValueType.STRING, [*texts, "\udcff\udc80", "\udcfe"])
    tokenizer = load_tokenizer(changed)
    assert tokenizer.encode("a b a") == load_tokenizer(plain).encode("a b a")
    assert tokenizer.piece(len(texts)) == b"\xff\x80"


def test_merges_to_and_of_what_is_no_token_are_passed_over():
    tokenizer = load_tokenizer(byte_level("ab", "\udcff", merges=["zz", "", " ", "a q", "q\udcff b", "\udcff a", "a b"]))
    assert tokenizer.encode("ab", add_special=False) == [256]


@pytest.mark.parametrize(("kind", "begin"), [(sentencepiece, "<s>"), (byte_level, "<|begin|>")])
def test_a_begin_token_in_a_text_that_gets_one_is_doubled_and_said(kind, begin):
    tokenizer = load_tokenizer(kind(add_bos_token=boolean(True)))
    with pytest.warns(QuantcliWarning, match=r"begin token '.*' already"):
        doubled = tokenizer.encode(f"{begin}a", parse_special=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = tokenizer.encode(f"{begin}a", parse_special=True, once=True)
        assert tokenizer.encode(f"{begin}a", add_special=False, parse_special=True) == once
        tokenizer.encode(f"{begin}a")  # as text
    assert doubled == [tokenizer.bos, *once]


def test_the_doubled_begin_token_is_said_where_texts_are_read(stories, tmp_path, capsys):
    (tmp_path / "text").write_text("<s>Once\n")
    for words in (
        ("run", stories, "-p", "<s>Once", "-n", 1, "--temp", 0, "--json"),
        ("tokenize", stories, "<s>Once", "--json"),
        ("embed", stories, "-p", "<s>Once", "--json"),
    ):
        status, out, err = run_command(capsys, *words)
        assert (status, err.count("warning: "), "begin token '<s>'" in err) == (0, 1, True)
        document = json.loads(out)
        found = document.get("prompt_tokens") or document.get("tokens") or document["embeddings"][0]["tokens"]
        assert found[:2] == [1, 1]


def test_a_file_without_a_pre_tokenizer_is_read_as_the_reference_reads_it(shared, tmp_path, capsys):
    path = tmp_path / "vocabulary.gguf"
    write_changed(shared / "golden/tokenization/llama-bpe.vocab.gguf", path, {"tokenizer.ggml.pre": None})
    status, out, err = run_command(capsys, "tokenize", path, TEXT, "--no-bos", "--json")
    assert status == 0
    assert err.startswith("warning: the file names no pre-tokenizer (tokenizer.ggml.pre): 'default' is used")
    assert "no pre-tokenizer key" in run_command(capsys, "inspect", path)[1]
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is the reference")
    reference = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    assert json.loads(out)["tokens"] == reference.tokenize(TEXT.encode(), add_bos=False, special=True)
    reference.close()


@pytest.mark.parametrize("more", [2, -2])
def test_a_vocabulary_has_as_many_tokens_as_the_embedding_has_rows(more, stories, tmp_path, capsys):
    changes = {}
    with open_gguf(stories) as file:
        for key, item in (("tokens", "<x{}>"), ("scores", 0.0), ("token_type", 3)):
            field = file.metadata[f"tokenizer.ggml.{key}"]
            items = field.elements()
            added = [item.format(index) if key == "tokens" else item for index in range(max(0, more))]
            changes[f"tokenizer.ggml.{key}"] = array(field.element, (items + added)[: 512 + more])
    path = write_changed(stories, tmp_path / "changed.gguf", changes)
    message = f"tensor 'token_embd.weight' has 512 rows, expected one for each of {512 + more} tokens"
    with pytest.raises(ModelError, match=message):
        load_model(path)
    for words in (("run", path, "-p", "Once", "--ignore-eos", "-n", 4), ("embed", path, "-p", "Once")):
        status, out, err = run_command(capsys, *words)
        assert (status, out, message in err, err.count("\n")) == (1, "", True, 0)
