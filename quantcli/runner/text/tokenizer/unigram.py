"""Unigram: normalizes a text, then finds the segmentation with the largest sum of scores, i.e. log-probabilities (Viterbi).

Source: `llm_tokenizer_ugm_session` of llama.cpp's `llama-vocab.cpp`, after SentencePiece's `unigram_model.cc`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from math import inf
from typing import Final, NamedTuple

from quantcli.core.errors import ModelError
from quantcli.formats.gguf.vocabulary import WORD_START
from quantcli.runner.text.tokenizer.character_map import CharacterMap
from quantcli.runner.text.tokenizer.sentencepiece import CACHED_WORDS, sentencepiece_bytes, word_boundaries
from quantcli.runner.text.tokenizer.vocabulary import Attribute, Vocabulary, without_stray_bytes

_UNKNOWN_PENALTY: Final = 10.0
"""The score of an unknown character is this much below that of the least likely token."""

_CLOSE: Final = 1e-4
_LONGEST_CACHED: Final = 256
"""For words of up to this length, rounding changes a sum of scores by less than `_CLOSE`, whatever text precedes."""


class Normalizer(NamedTuple):
    """Normalization before segmentation."""

    character_map: CharacterMap | None = None
    add_space_prefix: bool = False
    merge_spaces: bool = False
    """Strip white space at both ends, and collapse it between words."""


class _Cut(NamedTuple):
    ids: tuple[int, ...]
    """The segmentation, with one unknown token per unknown character."""
    clear: bool
    """Whether no other segmentation is so close that rounding could decide."""


class UnigramModel:
    """Unigram with the scores of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary, normalizer: Normalizer) -> None:
        self._vocabulary = vocabulary
        self._normalizer = normalizer
        self._unknown = vocabulary.special.get("unk", 0)
        usable = Attribute.NORMAL | Attribute.USER_DEFINED | Attribute.UNUSED
        chosen = [id_ for id_, attribute in enumerate(vocabulary.attributes) if attribute & usable]
        if not chosen:
            raise ModelError("the vocabulary has no token that a text could be cut into")
        texts = list(vocabulary.texts)
        self._ids = {texts[id_]: id_ for id_ in chosen}
        self._longest: dict[str, int] = {}
        for text in self._ids:
            self._longest[text[0]] = max(len(text), self._longest.get(text[0], 0))
        scores: list[float] = vocabulary.scores.tolist()
        self._scores = [
            0.0 if attribute & Attribute.USER_DEFINED else score
            for score, attribute in zip(scores, vocabulary.attributes, strict=True)
        ]
        normal = [scores[id_] for id_ in chosen if vocabulary.attributes[id_] & Attribute.NORMAL]
        self._unknown_score = _float32(min(normal, default=0.0) - _UNKNOWN_PENALTY)
        self._kept = {
            texts[id_][:stop]
            for id_ in chosen
            if vocabulary.attributes[id_] & Attribute.USER_DEFINED
            for stop in range(1, len(texts[id_]) + 1)
        }
        self._words = word_boundaries(self._ids)
        self._cut_apart = lru_cache(CACHED_WORDS)(self._cut)

    def encode(self, text: str) -> Iterator[int]:
        """The token ids of a text without special tokens. Adjacent unknown characters become one unknown token."""
        for id_, run in groupby(self._encode(text)):
            yield from (id_,) if id_ == self._unknown else run

    def _encode(self, text: str) -> Iterator[int]:
        total = 0.0
        for word in self._words.split(self.normalize(without_stray_bytes(text))):
            cut = self._cut_apart(word) if len(word) <= _LONGEST_CACHED else None
            found = cut.ids if cut is not None and cut.clear else self._cut(word, total).ids
            yield from found
            for id_ in found:
                total += self._score(id_)

    def piece(self, id_: int) -> bytes:
        """The bytes of a token."""
        return sentencepiece_bytes(self._vocabulary, id_)

    def normalize(self, text: str) -> str:
        """Apply the character map, and replace spaces by `WORD_START`."""
        prefix, merge = self._normalizer.add_space_prefix, self._normalizer.merge_spaces
        mapped = "".join(self._mapped(text))
        words = mapped.split(" ")
        if merge:
            kept = [word for word in words if word]
            # llama.cpp adds a space before the first word too, regardless of add_space_prefix.
            return "".join(WORD_START + word for word in kept)
        first = next((index for index, word in enumerate(words) if word), None)
        if prefix and first is not None:
            words[first] = WORD_START + words[first]
        return WORD_START.join(words)

    def _mapped(self, text: str) -> Iterator[str]:
        character_map, kept = self._normalizer.character_map, self._kept
        position, end = 0, len(text)
        while position < end:
            length = self._kept_at(text, position) if kept and text[position] in kept else 0
            replaced = None if length or character_map is None else character_map.longest(text, position)
            if replaced is None:
                length = length or 1
                yield text[position : position + length]
            else:
                length, replacement = replaced
                yield replacement
            position += length

    def _kept_at(self, text: str, start: int) -> int:
        """The length of the longest prefix of a user-defined token at `start`. It is not normalized, even if incomplete."""
        stop = start + 1
        while stop < len(text) and text[start : stop + 1] in self._kept:
            stop += 1
        return stop - start

    def _score(self, id_: int) -> float:
        return self._unknown_score if id_ == self._unknown else self._scores[id_]

    def _cut(self, word: str, before: float = 0.0) -> _Cut:
        """The best segmentation of a word, where `before` is the sum of scores so far. Ties go to the first found."""
        ids, longest, scores = self._ids, self._longest, self._scores
        end = len(word)
        best = [before] + [-inf] * end
        came = [(0, 0)] * (end + 1)
        clear = True
        for start in range(end):
            so_far = best[start]
            reach = min(end, start + longest.get(word[start], 0))
            for stop in range(start + 1, reach + 1):
                id_ = ids.get(word[start:stop])
                if id_ is None:
                    continue
                score = so_far + scores[id_]
                clear = clear and abs(score - best[stop]) > _CLOSE
                if score > best[stop]:
                    best[stop], came[stop] = score, (start, id_)
            if word[start] not in ids:
                score = so_far + self._unknown_score
                clear = clear and abs(score - best[start + 1]) > _CLOSE
                if score > best[start + 1]:
                    best[start + 1], came[start + 1] = score, (start, self._unknown)
        found = []
        while end:
            end, id_ = came[end]
            found.append(id_)
        return _Cut(tuple(reversed(found)), clear)


def _float32(value: float) -> float:
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)
