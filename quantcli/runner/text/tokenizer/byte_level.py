"""Byte-level BPE: a pre-tokenizer splits the text by regular expressions, bytes are mapped as in GPT-2, pairs are merged.

The text is split by Hugging Face's `tokenizers`, whose regular expression engine (Oniguruma) the patterns were written for.
Source of the conventions: `llm_tokenizer_bpe_session` of llama.cpp's `llama-vocab.cpp`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import Final

from tokenizers import Regex
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import Sequence, Split

from quantcli.architectures.pre_tokenizers import PreTokenizer
from quantcli.core.errors import UnsupportedError
from quantcli.formats.gguf.arrays import PackedStrings
from quantcli.formats.gguf.vocabulary import BYTES, WORD_START
from quantcli.runner.text.tokenizer.merging import chunks, merge
from quantcli.runner.text.tokenizer.sentencepiece import CACHED_WORDS, sentencepiece_bytes, word_boundaries
from quantcli.runner.text.tokenizer.strings import positions, with_inner
from quantcli.runner.text.tokenizer.vocabulary import Attribute, Vocabulary, without_stray_bytes

_CHARACTERS: Final = {byte: character for character, byte in BYTES.items()}


class ByteLevelModel:
    """Byte-level BPE with the merges of a vocabulary. As in llama.cpp, a merge is ignored unless its result is a token."""

    def __init__(self, vocabulary: Vocabulary, merges: PackedStrings, pre_tokenizer: PreTokenizer) -> None:
        if pre_tokenizer.patterns is None or pre_tokenizer.cut is None:
            raise UnsupportedError(f"the pre-tokenizer {pre_tokenizer.name!r} is not supported for tokenizing")
        self._vocabulary = vocabulary
        self._plain = pre_tokenizer.plain
        self._ignore_merges = pre_tokenizer.ignore_merges
        self._merge_rank = positions(merges)
        self._normalizer = None if pre_tokenizer.normalizer is None else _NORMALIZERS[pre_tokenizer.normalizer]()
        self._cut = re.compile(pre_tokenizer.cut)
        self._split = Sequence([Split(Regex(pattern), "isolated") for pattern in pre_tokenizer.patterns])
        # The words of a plain vocabulary are whole lines: split further, they are found in the cache.
        apart = self._plain and not self._ignore_merges
        self._boundaries = word_boundaries(with_inner(vocabulary.texts, WORD_START)) if apart else None
        self._encode_word = lru_cache(CACHED_WORDS)(self._merge)

    def encode(self, text: str) -> Iterator[int]:
        """The token ids of a text without special tokens."""
        return chain.from_iterable(map(self._encode_word, self._words(without_stray_bytes(text))))

    def _words(self, text: str) -> Iterator[str]:
        if self._plain:
            text = text.replace(" ", WORD_START)
        # `pre_tokenize_str` takes longer per character of a long text.
        for chunk in chunks(text, self._cut):
            composed = chunk if chunk.isascii() or not self._normalizer else self._normalizer.normalize_str(chunk)
            for word, _ in self._split.pre_tokenize_str(composed):
                if self._boundaries is None:
                    yield word
                else:
                    yield from self._boundaries.split(word) if self._has_all(word) else (word,)

    def _has_all(self, word: str) -> bool:
        """Whether all characters are tokens. Others become byte tokens, which may merge across a word boundary."""
        return None not in map(self._vocabulary.find, set(word))

    def _merge(self, word: str) -> tuple[int, ...]:
        find = self._vocabulary.find
        spelled = word if self._plain else "".join(map(_CHARACTERS.__getitem__, word.encode()))
        whole = find(spelled) if self._ignore_merges else None
        if whole is not None:
            return (whole,)
        ids = map(find, merge(self._symbols(spelled), self._rank))
        return tuple(id_ for id_ in ids if id_ is not None)

    def _symbols(self, word: str) -> Iterator[str]:
        """The characters of a word. Those that are not tokens become byte tokens, or are dropped without these."""
        find = self._vocabulary.find
        for character in word:
            if find(character) is not None:
                yield character
            elif self._plain:
                spelled = [f"<0x{byte:02X}>" for byte in character.encode()]
                yield from spelled if None not in map(find, spelled) else ()

    def _rank(self, left: str, right: str) -> int | None:
        # Parts contain no space, so the merge with this text is the merge of these two.
        rank = self._merge_rank(f"{left} {right}")
        return None if rank is None or self._vocabulary.find(left + right) is None else rank

    def piece(self, id_: int) -> bytes:
        """The bytes of a token."""
        if self._plain:
            return sentencepiece_bytes(self._vocabulary, id_)
        text, attribute = self._vocabulary.texts[id_], self._vocabulary.attributes[id_]
        if attribute & (Attribute.UNKNOWN | Attribute.CONTROL | Attribute.USER_DEFINED):
            return text.encode("utf-8", "surrogateescape")
        if attribute & Attribute.NORMAL:
            return b"".join(
                bytes([BYTES[char]]) if char in BYTES else char.encode("utf-8", "surrogateescape") for char in text
            )
        return b""


_NORMALIZERS: Final = {"NFC": NFC}
