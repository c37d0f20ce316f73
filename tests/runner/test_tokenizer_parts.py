"""The parts of tokenizers, each against a plain one: lookups in packed strings, merges, cuts of long texts."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from texts import random_texts
from tokenizers import Regex
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import Sequence, Split

from quantcli.architectures.pre_tokenizers import BETWEEN_WORDS, PreTokenizer, pre_tokenizers, splits
from quantcli.formats.gguf.arrays import pack_strings
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import ValueType, array, boolean, string
from quantcli.formats.gguf.vocabulary import BYTES
from quantcli.runner.text.tokenizer import load_tokenizer, merging, strings
from quantcli.runner.text.tokenizer.merging import merge

NAMES = ["llama-spm", "phi-3", "gpt-2", "llama-bpe", "qwen2", "falcon", "starcoder", "bert-bge"]

# --- Lookups --------------------------------------------------------------------------------------------------------------


def random_strings(count):
    dice = random.Random(count)
    ends = ["", "a" * 8, "▁the", "\udcff\udc80", "0123456789"]
    for _ in range(count):
        middle = "".join(dice.choice("ab ▁é🚀\0") for _ in range(dice.choice([0, 1, 2, 7, 8, 9, 300])))
        yield dice.choice(ends) + middle + dice.choice(ends)


@pytest.mark.parametrize("misses", [0, 1 << 20])
@pytest.mark.parametrize("count", [0, 1, 5, 4000])
def test_strings_are_found_where_they_are(count, misses, monkeypatch):
    monkeypatch.setattr(strings, "_MOST_MISSES", misses)
    given = list(random_strings(count))
    packed = pack_strings(given)
    first, last = strings.positions(packed), strings.positions(packed, last=True)
    expected_first = {text: index for index, text in reversed(list(enumerate(given)))}
    expected_last = {text: index for index, text in enumerate(given)}
    for text in itertools.chain(given, random_strings(500), ["", "missing"], given):
        assert (first(text), last(text)) == (expected_first.get(text), expected_last.get(text))
    assert list(packed) == given
    assert [packed[index] for index in range(len(packed))] == given
    assert strings.lengths(packed).tolist() == [len(text.encode("utf-8", "surrogateescape")) for text in given]


def test_bytes_of_one_string_are_not_another():
    find = strings.positions(pack_strings(["▁", "a"]))
    assert (find("\udce2\udc96\udc81"), find("▁"), find("\udce2\udc96\udc81")) == (None, 0, None)


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_strings_that_have_a_mark_inside_are_found(count):
    given = [*random_strings(count), "", "▁", "▁▁", "a▁", ""]
    found = strings.with_inner(pack_strings(given), "▁")
    assert found == [text for text in given if text.find("▁", 1) > 0]


# --- Merges ---------------------------------------------------------------------------------------------------------------


def merged_one_by_one(symbols, ranks):
    parts = list(symbols)
    while True:
        found = [(ranks[pair], left) for left, pair in enumerate(itertools.pairwise(parts)) if pair in ranks]
        if not found:
            return parts
        _, left = min(found)
        parts[left : left + 2] = ["".join(parts[left : left + 2])]


@pytest.mark.parametrize("several", [1, 3, 1000])
def test_the_best_pair_is_merged_first_and_the_leftmost_of_equals(several):
    dice = random.Random(several)
    for _ in range(300):
        tokens = {"".join(dice.choice("abc") for _ in range(dice.randint(1, 5))) for _ in range(40)}
        ranks = {
            (token[:middle], token[middle:]): dice.randrange(several)
            for token in sorted(tokens)
            for middle in range(1, len(token))
        }
        word = "".join(dice.choice("abc") for _ in range(dice.randint(0, 20)))
        assert merge(word, lambda left, right, ranks=ranks: ranks.get((left, right))) == merged_one_by_one(word, ranks)


def lines_model(tokens, merges, pre):
    """A vocabulary with the plain spelling or GPT-2's, and Hugging Face's model of it."""
    metadata = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(pre),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.merges": array(ValueType.STRING, merges),
        "tokenizer.ggml.add_bos_token": boolean(False),
    }
    known = set(tokens)
    pairs = [tuple(merge.split(" ")) for merge in dict.fromkeys(merges)]
    kept = [(left, right) for left, right in pairs if {left, right, left + right} <= known]
    row = pre_tokenizers()[pre]
    ids = {text: id_ for id_, text in enumerate(tokens)}
    own = HuggingFaceTokenizer(BPE(ids, kept, ignore_merges=row.ignore_merges, byte_fallback=row.plain))
    own.pre_tokenizer = Sequence([Split(Regex(pattern), "isolated") for pattern in row.patterns])
    return load_tokenizer(metadata), own


@pytest.mark.parametrize("bytes_", [True, False])
def test_lines_are_merged_as_by_the_other_library(bytes_):
    """Also where a character that is no token is passed over, or its bytes merge with what follows."""
    dice = random.Random(bytes_)
    for _ in range(40):
        words = {"".join(dice.choice("ab▁") for _ in range(dice.randint(2, 4))) for _ in range(20)}
        spelled = [f"<0x{byte:02X}>" for byte in "é".encode()] if bytes_ else []
        tokens = [*"ab▁\n", *spelled, *sorted(words), *([spelled[1] + "▁"] if bytes_ else [])]
        merges = [f"{word[:middle]} {word[middle:]}" for word in sorted(words) for middle in range(1, len(word))]
        merges += [f"{spelled[1]} ▁"] if bytes_ else []
        dice.shuffle(merges)
        tokenizer, own = lines_model(tokens, merges, "sarvam-moe")
        for _ in range(40):
            text = "".join(dice.choice("ab   \né") for _ in range(dice.randint(0, 30)))
            ids = tokenizer.encode(text, add_special=False, parse_special=False)
            assert ids == own.encode(text.replace(" ", "▁")).ids, text


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe"])
def test_characters_without_a_token_are_passed_over_as_by_the_other_library(pre):
    letters = [letter for letter in BYTES if letter != "b"]
    tokenizer, own = lines_model([*letters, "ac", "acd", "abc"], ["a c", "ac d", "a b", "q q"], pre)
    for text in ("abc", "abcd", "b", "xabcdb", "bacbbd"):
        assert tokenizer.encode(text, add_special=False) == own.encode(text).ids


# --- Long texts -----------------------------------------------------------------------------------------------------------


def long_text(seed):
    """Random texts, each followed by something to cut at, or by what is nearly that."""
    dice = random.Random(seed)
    after = ["a ", "b\n", "Z  ", "é ", "a\t", "7 ", "x\r\n", "I'l l", "n 1234", "1 000", "q \u0301", "'s\n", "\n\n", ". "]
    return "".join(text + dice.choice(after) for text in random_texts(seed, 150))


def pieces(split, text):
    return [piece for piece, _ in split.pre_tokenize_str(text)]


ROWS = {row.split: row for row in pre_tokenizers().values() if row.split is not None}


@pytest.mark.parametrize("name", sorted(splits()))
def test_a_split_is_the_same_on_both_sides_of_a_cut(name):
    patterns = splits()[name]
    split = Sequence([Split(Regex(pattern), "isolated") for pattern in patterns])
    cut = re.compile(ROWS[name].cut if name in ROWS else BETWEEN_WORDS)
    cuts = 0
    for seed in range(6):
        text = long_text(seed)
        whole = pieces(split, text)
        places = [0, *(found.start() for found in cut.finditer(text)), len(text)]
        cuts += len(places) - 2
        chunks = [text[start:end] for start, end in itertools.pairwise(places)]
        assert list(itertools.chain.from_iterable(pieces(split, chunk) for chunk in chunks)) == whole
        composed = [NFC().normalize_str(chunk) for chunk in chunks]
        assert "".join(composed) == NFC().normalize_str(text)
    assert cuts > 100


def test_every_split_says_where_to_cut_or_is_of_the_usual_kind():
    assert PreTokenizer("none").cut is None
    crossing = {name for name in splits() if name in ROWS and ROWS[name].cut != BETWEEN_WORDS}
    assert crossing == {"superbpe", "newlines", "exaone-moe"}
    for name in crossing:  # the usual place is wrong for them
        split = Sequence([Split(Regex(pattern), "isolated") for pattern in splits()[name]])
        assert pieces(split, "one two") == ["one two"]


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_limits_do_not_change_the_tokens(shared, name, monkeypatch):
    with open_gguf(shared / "golden" / "tokenization" / f"{name}.vocab.gguf") as file:
        tokenizer = load_tokenizer(file.metadata)
    text = long_text(11)
    monkeypatch.setattr(merging, "_CHUNK", 1 << 30)
    whole = {special: tokenizer.encode(text, add_special=special) for special in (True, False)}
    monkeypatch.setattr(merging, "_CHUNK", 1)
    for special, ids in whole.items():
        assert tokenizer.encode(text, add_special=special) == ids
        for limit in (0, 1, 2, 100, len(ids) - 1, len(ids), len(ids) + 1):
            assert tokenizer.encode(text, add_special=special, limit=limit) == ids[:limit]


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm"])
def test_a_limit_spares_the_rest_of_the_text(shared, name, monkeypatch):
    with open_gguf(shared / "golden" / "tokenization" / f"{name}.vocab.gguf") as file:
        tokenizer = load_tokenizer(file.metadata)
    words = []
    monkeypatch.setattr(f"{type(tokenizer.model).__module__}.merge", lambda *given: words.append(given) or merge(*given))
    text = " ".join(f"word{chr(97 + number % 26)}{number}x" for number in range(20_000))
    ids = tokenizer.encode(text, limit=50)
    assert 0 < len(words) < 100
    assert tokenizer.encode(text)[:50] == ids
    assert len(words) > 10_000
