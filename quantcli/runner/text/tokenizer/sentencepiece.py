"""SentencePiece BPE: merges the adjacent pair that forms the token with the best score, until no pair can be merged.

Source: `llm_tokenizer_spm_session` of llama.cpp's `llama-vocab.cpp`, after SentencePiece's `bpe_model.cc`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Final

import numpy as np

from quantcli.formats.gguf.vocabulary import WORD_START
from quantcli.runner.text.tokenizer.merging import chunks, merge
from quantcli.runner.text.tokenizer.strings import with_inner
from quantcli.runner.text.tokenizer.vocabulary import Attribute, Vocabulary

_BYTE_TOKEN: Final = re.compile("<0x([0-9A-Fa-f]{2})>")

CACHED_WORDS: Final = 1 << 16


class SentencePieceModel:
    """SentencePiece BPE with the scores of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._words = word_boundaries(with_inner(vocabulary.texts, WORD_START))
        _, order = np.unique(-vocabulary.scores, return_inverse=True)
        # As a list, since an array gives a NumPy scalar at each access.
        self._ranks: list[int] = order.tolist()
        """The rank of each token's score, the best first."""
        self._encode_word = lru_cache(CACHED_WORDS)(self._cut)

    def encode(self, text: str) -> Iterator[int]:
        """The token ids of a text without special tokens."""
        words = chain.from_iterable(map(self._words.split, chunks(text.replace(" ", WORD_START), self._words)))
        return chain.from_iterable(map(self._encode_word, words))

    def piece(self, id_: int) -> bytes:
        """The bytes of a token."""
        return sentencepiece_bytes(self._vocabulary, id_)

    def _cut(self, word: str) -> tuple[int, ...]:
        result: list[int] = []
        for part in merge(word, self._rank):
            id_ = self._vocabulary.find(part)
            result.extend(self._bytes(part) if id_ is None else (id_,))
        return tuple(result)

    def _rank(self, left: str, right: str) -> int | None:
        id_ = self._vocabulary.find(left + right)
        return None if id_ is None else self._ranks[id_]

    def _bytes(self, part: str) -> Iterator[int]:
        """Byte fallback: the byte tokens of a character that is not a token, or the unknown token where there are none."""
        find, unknown = self._vocabulary.find, self._vocabulary.special.get("unk", 0)
        for byte in part.encode("utf-8", "surrogateescape"):
            found = (find(f"<0x{byte:02X}>"), find(chr(byte)), unknown)
            yield next(id_ for id_ in found if id_ is not None)


def sentencepiece_bytes(vocabulary: Vocabulary, id_: int) -> bytes:
    """The bytes of a token in SentencePiece's notation: `WORD_START` for a space, `<0x0A>` for a byte."""
    text, attribute = vocabulary.texts[id_], vocabulary.attributes[id_]
    if attribute & (Attribute.UNKNOWN | Attribute.CONTROL | Attribute.USER_DEFINED):
        return text.encode("utf-8", "surrogateescape")
    if attribute & Attribute.NORMAL:
        return text.replace(WORD_START, " ").encode("utf-8", "surrogateescape")
    byte = _BYTE_TOKEN.fullmatch(text) if attribute & Attribute.BYTE else None
    return bytes.fromhex(byte[1]) if byte else b""


def word_boundaries(texts: Iterable[str]) -> re.Pattern[str]:
    """Where a text can be split without changing its tokens: before `WORD_START`, after characters that never precede it
    within a token.

    Words repeat, so most of a text is found in the cache.
    """
    joined = {WORD_START}
    for text in texts:
        start = text.find(WORD_START, 1)
        while start > 0:
            joined.add(text[start - 1])
            start = text.find(WORD_START, start + 1)
    return re.compile(f"(?<=[^{re.escape(''.join(sorted(joined)))}])(?={WORD_START})")
