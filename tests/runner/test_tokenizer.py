"""Tokenizing against llama.cpp with the same vocabularies, and against the models' own tokenizers."""

from __future__ import annotations

import ctypes
import json
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from texts import random_texts

from quantcli.architectures.schema import VocabularyRules
from quantcli.conversion.vocabulary import vocabulary_metadata
from quantcli.core.errors import ModelError, UnsupportedError
from quantcli.formats.checkpoint.checkpoint import Checkpoint
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import ValueType, array, boolean, string, u32
from quantcli.formats.gguf.vocabulary import BYTES
from quantcli.runner.text.tokenizer import StreamDecoder, load_tokenizer
from quantcli.runner.text.tokenizer.byte_level import ByteLevelModel
from quantcli.runner.text.tokenizer.vocabulary import Attribute

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))

from vocabulary_cases import KINDS, MODELS, RULES, TOKENIZED
from vocabulary_files import PRE_TOKENIZER, write_case

pytestmark = pytest.mark.filterwarnings("ignore:the text has the")  # texts here have all special tokens

FUZZED = 300
FUZZED_OWN = 2000
STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
INVERTIBLE = ["llama-spm", "phi-3", "gpt-2", "llama-bpe", "qwen2", "falcon", "starcoder"]
VOCABULARIES = [*INVERTIBLE, "bert-bge"]

# --- Against llama.cpp ----------------------------------------------------------------------------------------------------


def reference_tokenizer(shared, name):
    with open_gguf(shared / "golden" / "tokenization" / f"{name}.vocab.gguf") as file:
        return load_tokenizer(file.metadata)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_equals_reference_tokens(shared, name):
    tokenizer = reference_tokenizer(shared, name)
    cases = json.loads((shared / "golden" / "tokenization" / f"{name}.json").read_text(encoding="utf-8"))
    assert len(cases) > 40
    for case in cases:
        ids = tokenizer.encode(case["text"], add_special=False)
        assert ids == case["tokens"], case["text"]
        decoder = StreamDecoder(tokenizer)
        streamed = "".join(decoder.push(id_) for id_ in ids) + decoder.finish()
        assert streamed == b"".join(tokenizer.piece(id_) for id_ in ids if not tokenizer.is_hidden(id_)).decode()
        if name in INVERTIBLE:
            assert tokenizer.decode(ids) == case["text"]


@pytest.mark.parametrize("name", TOKENIZED)
def test_equals_reference_tokens_of_small_vocabularies(tmp_path, golden, name):
    case = KINDS[name]
    checkpoint = Checkpoint(write_case(tmp_path, case), tmp_path, case["config.json"], {})
    given = None if "tekken.json" in case else PRE_TOKENIZER
    rules = VocabularyRules(**RULES[name])
    tokenizer = load_tokenizer(
        vocabulary_metadata(checkpoint, case["config.json"]["vocab_size"], rules=rules, pre_tokenizer=given)
    )
    texts = json.loads((golden / "vocabulary_tokens.json").read_text(encoding="utf-8"))[name]
    assert len(texts) > 40
    for text, ids in texts:
        assert tokenizer.encode(text, parse_special=True) == ids, text


def is_plain(character):
    return len(unicodedata.normalize("NFD", character)) == 1 and not unicodedata.category(character).startswith("M")


AGREED = {
    # llama.cpp keeps of a character that decomposes, such as a Hangul syllable, the first part only, and strips all marks.
    "bert-bge": lambda text: "".join(char for char in unicodedata.normalize("NFC", text) if is_plain(char)),
    # It does not compose characters first, as the tokenizer of Qwen does.
    "qwen2": lambda text: unicodedata.normalize("NFC", text),
    # It strips ASCII white space only around a token that strips.
    "phi-3": lambda text: re.sub("[\x85\xa0\u2000-\u200a\u3000]", "", text),
}
"""Where the models' own tokenizers and llama.cpp differ, which texts they agree on."""


@pytest.mark.parametrize("name", VOCABULARIES)
def test_equals_reference_library(shared, name):
    llama_cpp = pytest.importorskip("llama_cpp", reason="the reference is not installed")
    path = shared / "golden" / "tokenization" / f"{name}.vocab.gguf"
    reference = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    vocabulary = llama_cpp.llama_model_get_vocab(reference.model)
    tokenizer = reference_tokenizer(shared, name)

    buffer = ctypes.create_string_buffer(1024)
    for id_ in range(len(tokenizer)):
        length = llama_cpp.llama_token_to_piece(vocabulary, id_, buffer, len(buffer), 0, True)
        assert tokenizer.piece(id_) == buffer.raw[:length]
        assert (id_ in tokenizer.end_of_generation) == llama_cpp.llama_vocab_is_eog(vocabulary, id_)
        control = bool(tokenizer.vocabulary.attributes[id_] & Attribute.CONTROL)
        assert control == llama_cpp.llama_vocab_is_control(vocabulary, id_)
    assert (tokenizer.bos, tokenizer.eos) == tuple(
        None if id_ < 0 else id_ for id_ in (llama_cpp.llama_vocab_bos(vocabulary), llama_cpp.llama_vocab_eos(vocabulary))
    )

    agreed = AGREED.get(name, lambda text: text)
    special = [tokenizer.vocabulary.texts[id_] for id_ in range(len(tokenizer)) if tokenizer.is_hidden(id_)]
    for number, text in enumerate(map(agreed, random_texts(3, FUZZED, special[:15]))):
        options = {"add_special": bool(number & 1), "parse_special": bool(number & 2)}
        expected = reference.tokenize(text.encode(), add_bos=options["add_special"], special=options["parse_special"])
        assert tokenizer.encode(text, **options) == expected, (text, options)


# --- Against the models' own tokenizers -----------------------------------------------------------------------------------

FAMILIES = {name: config["vocab_size"] for name, config in MODELS.items()}
NORMALIZING = ("qwen2.5", "gpt-neox-20b-pii-special")
"""Those that compose characters, so that a text need not come back as it was."""


def converted(directory, size=None):
    """The tokenizer after the whole way: the files of a model, converted to GGUF metadata, loaded from it."""
    name = {"general.name": string(directory.name)}  # by which Phi 3 is known
    return load_tokenizer(vocabulary_metadata(Checkpoint(directory, directory, {}, {}), size) | name)


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_models_own_tokenizer(shared, name):
    from tokenizers import Tokenizer

    directory = shared / "tokenizers" / name
    own = Tokenizer.from_file(str(directory / "tokenizer.json"))
    own.no_padding()
    own.no_truncation()
    tokenizer = converted(directory, FAMILIES[name])
    special = [token.content for token in own.get_added_tokens_decoder().values()]
    texts = [*random_texts(1, FUZZED_OWN // 2), *random_texts(6, FUZZED_OWN // 2, special[:20] + special[-5:])]
    expected = [encoding.ids for encoding in own.encode_batch_fast(texts)]
    for text, ids in zip(texts, expected, strict=True):
        assert tokenizer.encode(text, parse_special=True) == ids, text
    if isinstance(tokenizer.model, ByteLevelModel) and name not in NORMALIZING:
        for text in texts[: FUZZED_OWN // 2]:
            assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


def agrees_with_sentencepiece(directory, size=None):
    from sentencepiece import SentencePieceProcessor

    own = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    tokenizer = converted(directory, size)
    for text in random_texts(2, FUZZED_OWN):
        ids = tokenizer.encode(text, add_special=False)
        assert ids == own.encode(text), text
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ["llama-2", "mistral-v0.3", "phi-3-mini"])
def test_equals_sentencepiece(shared, name):
    pytest.importorskip("sentencepiece")
    agrees_with_sentencepiece(shared / "tokenizers" / name, FAMILIES[name])


def test_small_model_equals_sentencepiece():
    pytest.importorskip("sentencepiece")
    agrees_with_sentencepiece(STORYTELLER)


def test_unigram_equals_sentencepiece(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    case = KINDS["unigram"]
    own = sentencepiece.SentencePieceProcessor(model_file=str(write_case(tmp_path, case) / "tokenizer.model"))
    checkpoint = Checkpoint(tmp_path, tmp_path, case["config.json"], {})
    tokenizer = load_tokenizer(vocabulary_metadata(checkpoint, None, rules=VocabularyRules(unigram=True)))
    for text in random_texts(8, FUZZED_OWN):
        ids, expected = tokenizer.encode(text, add_special=False), own.encode(text)
        if ids != expected:
            # It adds in single precision, llama.cpp and the tokenizers library in double: a tie is decided either way.
            scores = [sum(own.get_score(id_) for id_ in found) for found in (ids, expected)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-4), text
            assert tokenizer.decode(ids) == tokenizer.decode(expected)


# --- By hand --------------------------------------------------------------------------------------------------------------


def pieces(*texts, types=None, scores=None, **more):
    """The metadata of a SentencePiece vocabulary; `<...>` is control, `<0x..>` a byte."""

    def type_of(text):
        return 6 if text.startswith("<0x") else 3 if text.startswith("<") else 1

    return {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, list(texts)),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, scores or [-float(id_) for id_ in range(len(texts))]),
        "tokenizer.ggml.token_type": array(ValueType.INT32, types or [type_of(text) for text in texts]),
        **more,
    }


def byte_level(*texts, merges=(), pre="gpt-2", **more):
    """The metadata of a byte-level vocabulary: the alphabet, then `texts`; `<...>` is control."""
    tokens = [*BYTES, *texts]
    types = [3 if len(text) > 1 and text.startswith("<") else 1 for text in tokens]
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(pre),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.token_type": array(ValueType.INT32, types),
        "tokenizer.ggml.merges": array(ValueType.STRING, list(merges)),
        **more,
    }


def shown(tokenizer, text, **options):
    return [tokenizer.piece(id_).decode("utf-8", "backslashreplace") for id_ in tokenizer.encode(text, **options)]


BASE = ("<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b")


def test_best_score_joins_first():
    tokenizer = load_tokenizer(pieces(*BASE, "ab", "ba", "bab"))
    assert shown(tokenizer, "abab", add_special=False) == [" ", "ab", "ab"]
    tokenizer = load_tokenizer(pieces(*BASE, "ba", "ab", "aba"))
    assert shown(tokenizer, "abab", add_special=False) == [" ", "aba", "b"]


def test_leftmost_joins_first_among_equals():
    tokenizer = load_tokenizer(pieces(*BASE, "aa", "aaa", scores=[0.0] * 10))
    assert shown(tokenizer, "aaaaa", add_special=False) == [" ", "aaa", "aa"]


def test_characters_that_are_no_token_become_bytes_and_those_the_unknown_token():
    tokenizer = load_tokenizer(pieces(*BASE))
    assert tokenizer.encode("é", add_special=False) == [5, 3, 4]
    assert tokenizer.encode("c", add_special=False) == [5, 0]


def test_a_text_is_cut_only_where_no_token_joins():
    tokenizer = load_tokenizer(pieces(*BASE, "a▁", "a▁b"))
    assert shown(tokenizer, "a b", add_special=False) == [" ", "a b"]


def test_begin_and_end_tokens_and_the_space_in_front_follow_the_flags():
    metadata = pieces(*BASE)
    assert load_tokenizer(metadata).encode("a") == [1, 5, 6]
    metadata |= {"tokenizer.ggml.add_bos_token": boolean(False), "tokenizer.ggml.add_eos_token": boolean(True)}
    metadata |= {"tokenizer.ggml.add_space_prefix": boolean(False), "tokenizer.ggml.eos_token_id": u32(7)}
    assert load_tokenizer(metadata).encode("a") == [6, 7]
    assert load_tokenizer(metadata).encode("a", add_special=False) == [6]
    assert load_tokenizer(pieces(*BASE)).encode("") == [1]


def test_special_texts_are_tokens_only_when_asked():
    tokenizer = load_tokenizer(pieces(*BASE, "<a>", "[a]", types=[2, 3, 3, 6, 6, 1, 1, 1, 3, 4]))
    assert 8 not in tokenizer.encode("a<a>b", add_special=False)
    # A space comes in front of what follows a special token.
    assert tokenizer.encode("a<a>b", add_special=False, parse_special=True) == [5, 6, 8, 5, 7]
    # What a user defined is a token always.
    assert tokenizer.encode("a[a]b", add_special=False) == [5, 6, 9, 5, 7]
    assert tokenizer.decode([6, 8, 7]) == "ab"
    assert tokenizer.decode([6, 8, 7], special=True) == "a<a>b"


def test_the_longer_special_token_counts_wherever_it_starts():
    tokenizer = load_tokenizer(pieces(*BASE, "<aa", "aab>", types=[2, 3, 3, 6, 6, 1, 1, 1, 3, 3]))
    assert tokenizer.encode("<aab>", add_special=False, parse_special=True)[-1] == 9


def test_tokens_of_phi_3_swallow_the_space_after_them():
    tokenizer = load_tokenizer(pieces(*BASE, "<|user|>", **{"general.name": string("Phi-3-mini")}))
    assert tokenizer.encode("<|user|> \n a", add_special=False, parse_special=True) == [8, 5, 6]
    assert tokenizer.encode("<s> a", add_special=False, parse_special=True) == [1, 5, 5, 6]


def test_merges_apply_in_their_order():
    tokenizer = load_tokenizer(byte_level("ab", "bc", "abc", merges=["b c", "a b", "a bc"]))
    assert shown(tokenizer, "abc ab", add_special=False) == ["abc", " ", "ab"]


def test_merges_may_begin_with_a_space_and_those_to_no_token_are_ignored():
    tokenizer = load_tokenizer(byte_level("ab", merges=["a b", "ab ab", "a b"]))
    assert shown(tokenizer, "abab", add_special=False) == ["ab", "ab"]
    # What is no pair merges nothing, as in llama.cpp.
    tokenizer = load_tokenizer(byte_level("ab", merges=[" ab", "zz", "", "a b"]))
    assert shown(tokenizer, "ab", add_special=False) == ["ab"]


def test_ignoring_merges_takes_whole_words():
    merges, texts = ["a b"], ("ab", "abc")
    assert shown(load_tokenizer(byte_level(*texts, merges=merges)), "abc", add_special=False) == ["ab", "c"]
    assert shown(load_tokenizer(byte_level(*texts, merges=merges, pre="llama-bpe")), "abc", add_special=False) == ["abc"]


def test_bytes_that_are_no_text_are_read_as_replacement_characters():
    tokenizer = load_tokenizer(byte_level())
    assert tokenizer.decode(tokenizer.encode("a\udcffb", add_special=False)) == "a\ufffdb"
    assert load_tokenizer(pieces(*BASE)).encode("\udca9", add_special=False) == [5, 4]


def test_stream_decoder_waits_for_whole_characters():
    tokenizer = load_tokenizer(byte_level("<x>"))
    decoder = StreamDecoder(tokenizer)
    ids = tokenizer.encode("é🚀!", add_special=False)
    assert [decoder.push(id_) for id_ in ids] == ["", "é", "", "", "", "🚀", "!"]
    assert decoder.push(256) == ""
    assert (decoder.push(ids[0]), decoder.finish()) == ("", "\ufffd")
    assert StreamDecoder(tokenizer, special=True).push(256) == "<x>"


def test_ends_of_generation_are_found_by_text_and_made_control():
    tokenizer = load_tokenizer(byte_level("<|im_end|>", "x", "<|fim_pad|>", **{"tokenizer.ggml.eos_token_id": u32(5)}))
    find = tokenizer.vocabulary.find
    assert tokenizer.end_of_generation == {5, find("<|im_end|>"), find("<|fim_pad|>")}
    assert tokenizer.vocabulary.special["eot"] == find("<|im_end|>")


def test_end_is_part_of_the_text_where_other_tokens_end_it():
    tokenizer = load_tokenizer(byte_level("<|end|>", "<|return|>", "<|call|>", "<|channel|>"))
    find = tokenizer.vocabulary.find
    assert find("<|end|>") not in tokenizer.end_of_generation
    assert find("<|call|>") in tokenizer.end_of_generation
    assert not tokenizer.is_hidden(find("<|channel|>"))


def test_long_texts_take_no_quadratic_time():
    sentencepiece, byte_pairs = (
        load_tokenizer(pieces(*BASE, "aa", "aaaa")),
        load_tokenizer(byte_level("aa", merges=["a a"])),
    )
    for text in ("a" * 50_000, " " * 50_000, "ab " * 20_000):
        assert sentencepiece.decode(sentencepiece.encode(text)) == text
        assert byte_pairs.decode(byte_pairs.encode(text)) == text


# --- What can be wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "error", "said"),
    [
        ({}, ModelError, "no tokenizer: no tokenizer.ggml.model"),
        ({"tokenizer.ggml.model": string("llama")}, ModelError, "no tokenizer.ggml.tokens"),
        (pieces(*BASE) | {"tokenizer.ggml.model": string("rwkv")}, UnsupportedError, "'rwkv' is unknown"),
        (pieces(*BASE, scores=[0.0]), ModelError, r"tokenizer.ggml.scores has 1 values, expected one for each of 8 tokens"),
        (pieces(*BASE) | {"tokenizer.ggml.tokens": u32(1)}, ModelError, "tokens is of type UINT32, expected ARRAY"),
        (
            pieces(*BASE) | {"tokenizer.ggml.tokens": array(ValueType.INT32, [1])},
            ModelError,
            "array of INT32, expected STRING",
        ),
        (pieces(*BASE) | {"tokenizer.ggml.bos_token_id": string("1")}, ModelError, "bos_token_id is of type STRING"),
        (pieces(*BASE) | {"tokenizer.ggml.add_bos_token": u32(1)}, ModelError, "UINT32, expected BOOL"),
        (byte_level(pre="nonesuch"), UnsupportedError, "pre-tokenizer 'nonesuch' is unknown"),
        (byte_level(pre="whitespace"), UnsupportedError, "'whitespace' is not supported for tokenizing"),
    ],
)
def test_error(metadata, error, said):
    with pytest.raises(error, match=said):
        load_tokenizer(metadata)


def test_byte_level_without_merges():
    metadata = byte_level()
    del metadata["tokenizer.ggml.merges"]
    with pytest.raises(ModelError, match=r"no tokenizer\.ggml\.merges"):
        load_tokenizer(metadata)


def test_token_outside_the_vocabulary():
    with pytest.raises(ModelError, match="token 8 is outside the vocabulary of 8"):
        load_tokenizer(pieces(*BASE)).decode([8])
