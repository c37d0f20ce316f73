"""SentencePiece BPE: merges the adjacent pair that forms the token with the best score, until no pair can be merged.

Source: `llm_tokenizer_spm_session` of llama.cpp's `llama-vocab.cpp`, after SentencePiece's `bpe_model.cc`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from heapq import heapify, heappop, heappush
from typing import Final

from quantcli.formats.gguf.vocabulary import WORD_START
from quantcli.runner.text.tokenizer.vocabulary import Attribute, Vocabulary

_BYTE_TOKEN: Final = re.compile("<0x([0-9A-Fa-f]{2})>")

CACHED_WORDS: Final = 1 << 16


class SentencePieceModel:
    """SentencePiece BPE with the scores of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._words = word_boundaries(vocabulary.texts)
        order = {score: rank for rank, score in enumerate(sorted(set(vocabulary.scores), reverse=True))}
        self._ranks = [order[score] for score in vocabulary.scores]
        """The rank of each token's score, the best first."""
        self._encode_word = lru_cache(CACHED_WORDS)(self._join)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text without special tokens."""
        ids: list[int] = []
        for word in self._words.split(text.replace(" ", WORD_START)):
            ids.extend(self._encode_word(word))
        return ids

    def piece(self, id_: int) -> bytes:
        """The bytes of a token."""
        return sentencepiece_bytes(self._vocabulary, id_)

    def _join(self, word: str) -> tuple[int, ...]:
        """Merge the characters of `word`, best score first. Ties go to the leftmost pair."""
        ids, ranks = self._vocabulary.ids, self._ranks
        parts: list[str | None] = list(word)
        count = len(parts)
        # A doubly linked list over `parts`; the end of the last part is `count`, the one before the first -1.
        before = list(range(-1, count - 1))
        after = list(range(1, count + 1))

        # Candidate pairs as one number: rank * count + left. A stale pair, one side of which has been merged since, is
        # recognised when it is popped, because its rank no longer matches.
        queue: list[int] = []
        for left in range(count - 1):
            id_ = ids.get(word[left : left + 2])
            if id_ is not None:
                queue.append(ranks[id_] * count + left)
        heapify(queue)

        while queue:
            rank, left = divmod(heappop(queue), count)
            first, right = parts[left], after[left]
            if first is None or right == count:
                continue
            joined = first + (parts[right] or "")
            id_ = ids.get(joined)
            if id_ is None or ranks[id_] != rank:
                continue
            parts[left], parts[right] = joined, None
            follower = after[left] = after[right]
            if follower < count:
                before[follower] = left
                id_ = ids.get(joined + (parts[follower] or ""))
                if id_ is not None:
                    heappush(queue, ranks[id_] * count + left)
            previous = before[left]
            if previous >= 0:
                id_ = ids.get((parts[previous] or "") + joined)
                if id_ is not None:
                    heappush(queue, ranks[id_] * count + previous)

        result: list[int] = []
        for part in parts:
            if part is not None:
                id_ = ids.get(part)
                result.extend(self._bytes(part) if id_ is None else (id_,))
        return tuple(result)

    def _bytes(self, part: str) -> list[int]:
        """Byte fallback: the byte tokens of a character that is not a token, or the unknown token where there are none."""
        ids, unknown = self._vocabulary.ids, self._vocabulary.special.get("unk", 0)
        return [ids.get(f"<0x{byte:02X}>", ids.get(chr(byte), unknown)) for byte in part.encode("utf-8", "surrogateescape")]


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
