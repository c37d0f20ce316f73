"""The algorithms that few models have, and what the models' own tokenizers do that a GGUF file cannot say: by hand."""

from __future__ import annotations

import struct

import pytest

from quantcli.core.errors import ModelError
from quantcli.formats.gguf.spec import ValueType, array, boolean, string, u32
from quantcli.formats.gguf.vocabulary import BYTES
from quantcli.runner.text.tokenizer import load_tokenizer
from quantcli.runner.text.tokenizer.character_map import CharacterMap

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def vocabulary(model, tokens, **more):
    """Metadata of a vocabulary of (text, type, score)."""
    texts, types, scores = zip(*tokens, strict=True)
    return {
        "tokenizer.ggml.model": string(model),
        "tokenizer.ggml.tokens": array(ValueType.STRING, list(texts)),
        "tokenizer.ggml.token_type": array(ValueType.INT32, list(types)),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, [float(score) for score in scores]),
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def shown(tokenizer, text, **options):
    return [tokenizer.piece(id_).decode("utf-8", "backslashreplace") for id_ in tokenizer.encode(text, **options)]


# --- Unigram --------------------------------------------------------------------------------------------------------------


def unigram(*tokens, **more):
    head = [("<pad>", CONTROL, 0), ("</s>", CONTROL, 0), ("<unk>", UNKNOWN, 0)]
    given = [token if isinstance(token[1], int) and len(token) == 3 else (token[0], NORMAL, token[1]) for token in tokens]
    return load_tokenizer(vocabulary("t5", head + given, **more))


def test_the_best_sum_of_scores_wins():
    tokenizer = unigram(("a", -1.0), ("b", -1.0), ("ab", -1.5), ("abc", -9.0), ("c", -1.0))
    assert shown(tokenizer, "abc", add_special=False) == ["ab", "c"]
    assert tokenizer.encode("abc") == [5, 7, 1]


def test_what_is_found_first_wins_a_tie():
    tokenizer = unigram(("a", -1.0), ("aa", -2.0), ("aaa", -3.0))
    assert shown(tokenizer, "aaa", add_special=False) == ["aaa"]
    tokenizer = unigram(("a", -1.0), ("aa", -1.5))
    assert shown(tokenizer, "aaa", add_special=False) == ["a", "aa"]


def test_neighbours_in_no_token_are_one_unknown_token_also_across_words():
    tokenizer = unigram(("a", -1.0), ("▁", -2.0), add_space_prefix=boolean(True))
    assert tokenizer.encode("aéüa", add_special=False) == [4, 3, 2, 3]
    tokenizer = unigram(("a", -1.0))
    assert tokenizer.encode("a é ü", add_special=False) == [3, 2]


def test_spaces_are_merged_only_if_the_file_says_so():
    tokens = [("a", -1.0), ("▁", -2.0), ("▁a", -2.5)]
    assert shown(unigram(*tokens), "  a a", add_special=False) == [" ", " a", " a"]
    prefixed = unigram(*tokens, add_space_prefix=boolean(True))
    assert shown(prefixed, "a  a", add_special=False) == [" a", " ", " a"]
    merged = unigram(*tokens, add_space_prefix=boolean(True), remove_extra_whitespaces=boolean(True))
    assert shown(merged, "  a  a ", add_special=False) == [" a", " a"]
    assert merged.encode("   ", add_special=False) == []
    assert merged.decode(merged.encode("a a")) == "a a"


def test_what_a_user_defined_costs_nothing_and_stays_as_it_is():
    tokenizer = unigram(("a", -1.0), ("b", -1.0), ("ab", USER_DEFINED, -50), ("aab", -0.5))
    assert shown(tokenizer, "aab", add_special=False) == ["a", "ab"]


def test_types_that_no_text_becomes():
    tokenizer = unigram(("a", -1.0), ("b", CONTROL, 0.0), ("c", UNUSED, -2), ("<0x64>", BYTE, 0))
    assert tokenizer.encode("abcd", add_special=False) == [3, 2, 5, 2]


def test_no_token_to_cut_into():
    with pytest.raises(ModelError, match="no token that a text could be cut into"):
        unigram()


def character_map(entries):
    """A map of single-byte keys: for each a node that is a leaf, and one that holds where its replacement is."""
    nodes, replacements = [0] * 512, b""
    for key, replacement in entries.items():
        # The offset of the leaf leads to the node 256 places on.
        nodes[key] = key | 1 << 8 | (256 << 10)
        nodes[key ^ 256] = len(replacements)
        replacements += replacement.encode() + b"\0"
    data = struct.pack("<512I", *nodes)
    return struct.pack("<I", len(data)) + data + replacements


def test_characters_are_mapped():
    mapped = CharacterMap(character_map({ord("x"): "ab", ord("y"): ""}))
    assert mapped.longest("xy", 0) == (1, "ab")
    assert mapped.longest("xy", 1) == (1, "")
    assert mapped.longest("ab", 0) is None
    data = list(character_map({ord("x"): "ab", ord("y"): ""}))
    tokenizer = unigram(("a", -1.0), ("b", -1.0), precompiled_charsmap=array(ValueType.UINT8, data))
    assert tokenizer.encode("xyb", add_special=False) == [3, 4, 4]


def test_long_texts_take_no_quadratic_time():
    data = list(character_map({ord("x"): "ab"}))
    tokens = [("a", -1.0), ("b", -1.0), ("ab", -1.5), ("▁", -2.0), ("▁a", -2.5)]
    tokenizer = unigram(*tokens, precompiled_charsmap=array(ValueType.UINT8, data))
    for text in ("x" * 50_000, " " * 50_000, "ab " * 20_000, "é" * 50_000):
        ids = tokenizer.encode(text, add_special=False)
        assert tokenizer.decode(ids, special=True) == text.replace("x", "ab").replace("é" * 50_000, "<unk>")
    assert len(word_piece().encode("the ab!" * 20_000, add_special=False)) == 80_000


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x01", "of 1 bytes is damaged"),
        (struct.pack("<I", 4), "its trie has 4 bytes"),
        (struct.pack("<I", 3) + bytes(8), "its trie has 3 bytes"),
        (struct.pack("<I", 1 << 31) + bytes(8), "its trie has"),
    ],
)
def test_damaged_character_map(data, said):
    with pytest.raises(ModelError, match=said):
        CharacterMap(data)


def test_character_map_that_leads_outside():
    data = bytearray(character_map({ord("x"): "ab"}))
    with pytest.raises(ModelError, match="its trie points outside"):
        CharacterMap(struct.pack("<I", 4) + data[4:8] + b"\0").longest("x", 0)
    struct.pack_into("<I", data, 4 + 4 * (ord("x") ^ 256), 1000)
    with pytest.raises(ModelError, match="a replacement is out of range"):
        CharacterMap(bytes(data)).longest("x", 0)
    with pytest.raises(ModelError, match="a replacement is out of range"):
        CharacterMap(character_map({ord("x"): "x" * 1025})).longest("x", 0)


# --- WordPiece ------------------------------------------------------------------------------------------------------------


def word_piece(**more):
    texts = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁the", "▁a", "b", "▁é", "▁!", "▁中", "▁e", "▁[x]"]
    types = [CONTROL] * 4 + [NORMAL] * 8
    ids = {"bos_token_id": u32(2), "seperator_token_id": u32(3), "unknown_token_id": u32(1)}
    return load_tokenizer(vocabulary("bert", [(*pair, 0) for pair in zip(texts, types, strict=True)], **ids | more))


def test_words_are_covered_from_the_left_between_begin_and_separator():
    tokenizer = word_piece(add_bos_token=boolean(False), add_sep_token=boolean(False))
    assert shown(tokenizer, "The ab!中") == ["[CLS]", " the", " a", "b", " !", " 中", "[SEP]"]
    assert tokenizer.encode("abz", add_special=False) == [1]
    assert tokenizer.encode("a" + "b" * 99, add_special=False) == [5] + [6] * 99
    assert tokenizer.encode("a" + "b" * 100, add_special=False) == [1]


def test_case_and_accents_follow_the_file():
    assert word_piece().encode("É", add_special=False) == [10]
    plain = word_piece(**{"normalizer.strip_accents": boolean(False)})
    assert plain.encode("É", add_special=False) == [7]
    cased = word_piece(**{"normalizer.lowercase": boolean(False)})
    assert cased.encode("The é", add_special=False) == [1, 7]


# --- What a file cannot say -----------------------------------------------------------------------------------------------


def byte_level(pre, *more, **keys):
    tokens = [(char, NORMAL, 0) for char in BYTES] + [(text, type_, 0) for text, type_ in more]
    merges = array(ValueType.STRING, ["Ã ©"])
    return load_tokenizer(vocabulary("gpt2", tokens, pre=string(pre), merges=merges, **keys))


def test_characters_are_composed_where_the_models_tokenizer_does():
    composed, left = (byte_level(pre, ("Ã©", NORMAL)) for pre in ("qwen2", "deepseek-r1-qwen"))
    assert composed.encode("e\u0301") == [256]
    assert left.decode(left.encode("e\u0301")) == "e\u0301"


def test_a_mask_swallows_the_space_before_it():
    tokenizer = byte_level("roberta-bpe", ("<mask>", CONTROL))
    assert shown(tokenizer, "a \u3000<mask> b", parse_special=True) == ["a", "<mask>", " ", "b"]
    assert len(shown(byte_level("gpt-2", ("<mask>", CONTROL)), "a <mask>", parse_special=True)) == 3


@pytest.mark.parametrize("model", ["gemma4", "gpt2"])
def test_merges_over_characters_with_bytes_for_the_others(model):
    tokens = [("<bos>", CONTROL, 0), *((text, NORMAL, 0) for text in ("a", "b", "▁", "▁a", "\n", "\n\n"))]
    tokens += [("<0xC3>", BYTE, 0), ("<0xA9>", BYTE, 0)]
    merges = array(ValueType.STRING, ["▁ a", "\n \n"])
    keys = {"pre": string("gemma4"), "bos_token_id": u32(0), "add_bos_token": boolean(False)}
    tokenizer = load_tokenizer(vocabulary(model, tokens, merges=merges, **keys))
    assert tokenizer.encode("b a\n\né") == [0, 2, 4, 6, 7, 8]
    assert tokenizer.decode([2, 4, 6, 7, 8]) == "b a\n\né"


# --- Text that is none ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\ud83d", "a\ude00b", "\ud83d\ude00", "\udfff\ud800"])
def test_lone_surrogates_are_replacement_characters(text):
    replaced = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    spm = vocabulary("llama", [("<unk>", UNKNOWN, 0), ("a", NORMAL, 0), ("\ufffd", NORMAL, 0), ("▁", NORMAL, 0)])
    for tokenizer in (byte_level("gpt-2"), word_piece(), unigram(("a", -1), ("\ufffd", -2)), load_tokenizer(spm)):
        assert tokenizer.encode(text) == tokenizer.encode(replaced)
