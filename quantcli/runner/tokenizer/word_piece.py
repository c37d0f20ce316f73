"""WordPiece: split into words and punctuation, then cover each word with the longest tokens from the left.

Source: `llm_tokenizer_wpm_session` of llama.cpp's `llama-vocab.cpp`. In GGUF a token that begins a word is written with
`WORD_START` in front, and one that continues a word without BERT's `##`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from quantcli.runner.tokenizer.sentencepiece import WORD_START, sentencepiece_bytes
from quantcli.runner.tokenizer.vocabulary import Vocabulary

_WHITE_SPACE: Final = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | frozenset(
    map(chr, range(0x2000, 0x200B))
)

_IDEOGRAPHS: Final = (
    (0x04E00, 0x09FFF),
    (0x03400, 0x04DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0x0F900, 0x0FAFF),
    (0x2F800, 0x2FA1F),
)
"""Code points that are words of their own. The sixth range starts where BERT's fast tokenizer has it, not Unicode."""

_CONTROL: Final = frozenset({"Cc", "Cf", "Co", "Cs"})

CACHED_CHARACTERS: Final = 1 << 14


@dataclass(frozen=True)
class Normalizer:
    """What becomes of characters before they are looked up."""

    lowercase: bool = True
    strip_accents: bool = True


class WordPieceModel:
    """Encodes by longest match, and tells the bytes of its tokens."""

    def __init__(self, vocabulary: Vocabulary, normalizer: Normalizer) -> None:
        self._vocabulary = vocabulary
        self._normalizer = normalizer
        self._longest = max(map(len, vocabulary.texts))
        self._unknown = vocabulary.special.get("unk", 0)

    def encode(self, text: str) -> list[int]:
        """The ids of a text that holds no special token."""
        return [id_ for word in _words(text, self._normalizer) for id_ in self._cover(WORD_START + word)]

    def piece(self, id_: int) -> bytes:
        """The bytes a token stands for."""
        return sentencepiece_bytes(self._vocabulary, id_)

    def _cover(self, word: str) -> list[int]:
        """Tokens for a whole word, or the unknown token where some part of it is none."""
        found: list[int] = []
        start = 0
        while start < len(word):
            stops = range(min(len(word), start + self._longest), start, -1)
            stop = next((stop for stop in stops if word[start:stop] in self._vocabulary.ids), None)
            if stop is None:
                return [self._unknown]
            found.append(self._vocabulary.ids[word[start:stop]])
            start = stop
        return found


def _words(text: str, normalizer: Normalizer) -> Iterator[str]:
    word = ""
    for character in text:
        separates, shown = _normalized(character, normalizer)
        if not separates:
            word += shown
            continue
        if word:
            yield word
        if shown:
            yield shown
        word = ""
    if word:
        yield word


@lru_cache(CACHED_CHARACTERS)
def _normalized(original: str, normalizer: Normalizer) -> tuple[bool, str]:
    """Whether a character separates words, being white space or a word of its own, and what of it is looked up."""
    # Only the base character counts, also of letters that decompose into more than one.
    character = unicodedata.normalize("NFD", original)[0] if normalizer.strip_accents else original
    category = unicodedata.category(character)
    if character in _WHITE_SPACE:
        return True, ""
    if character == "\ufffd" or category in _CONTROL or (normalizer.strip_accents and category.startswith("M")):
        return False, ""
    return _stands_alone(character, category), character.lower()[0] if normalizer.lowercase else character


def _stands_alone(character: str, category: str) -> bool:
    code = ord(character)
    ascii_symbol = category.startswith("S") and code < 0x7F
    return category.startswith("P") or ascii_symbol or any(first <= code <= last for first, last in _IDEOGRAPHS)
