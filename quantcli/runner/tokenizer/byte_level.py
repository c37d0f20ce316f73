"""Byte-level BPE: split by regular expressions, spell pieces in GPT-2's alphabet of bytes, merge pairs in a given order.

Splitting and merging run in `tokenizers`, whose regular expressions (Oniguruma) are those the patterns were written for.
Source of the conventions: `llm_tokenizer_bpe_session` of llama.cpp's `llama-vocab.cpp`.
"""

from __future__ import annotations

import re
from typing import Final

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from quantcli.architectures.pre_tokenizers import PreTokenizer
from quantcli.formats.errors import ModelError, UnsupportedError
from quantcli.runner.tokenizer.vocabulary import Attribute, Vocabulary


def _alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: the printable ones of Latin-1 stand for themselves, the rest follow from U+0100."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_SURROGATE: Final = re.compile("[\ud800-\udfff]")

BYTES: Final = _alphabet()
"""Character of GPT-2's alphabet -> byte."""


class ByteLevelModel:
    """Encodes with the merges of a vocabulary, and tells the bytes of its tokens."""

    def __init__(self, vocabulary: Vocabulary, merges: list[str], pre_tokenizer: PreTokenizer) -> None:
        if pre_tokenizer.patterns is None:
            raise UnsupportedError(f"the pre-tokenizer {pre_tokenizer.name!r} is not one that can be run")
        self._vocabulary = vocabulary
        self._tokenizer = Tokenizer(
            BPE(vocabulary.ids, _pairs(vocabulary, merges), ignore_merges=pre_tokenizer.ignore_merges)
        )
        splits = [Split(Regex(pattern), "isolated") for pattern in pre_tokenizer.patterns]
        self._tokenizer.pre_tokenizer = Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])

    def encode(self, text: str) -> list[int]:
        """The ids of a text that holds no special token."""
        # The fast variant keeps no offsets. A byte that is no UTF-8 comes as a lone surrogate and is read as U+FFFD.
        (encoding,) = self._tokenizer.encode_batch_fast([_SURROGATE.sub("\ufffd", text)], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def piece(self, id_: int) -> bytes:
        """The bytes a token stands for."""
        text, attribute = self._vocabulary.texts[id_], self._vocabulary.attributes[id_]
        if attribute & (Attribute.UNKNOWN | Attribute.CONTROL | Attribute.USER_DEFINED):
            return text.encode("utf-8", "surrogateescape")
        if attribute & Attribute.NORMAL:
            return b"".join(
                bytes([BYTES[char]]) if char in BYTES else char.encode("utf-8", "surrogateescape") for char in text
            )
        return b""


def _pairs(vocabulary: Vocabulary, merges: list[str]) -> list[tuple[str, str]]:
    """The merges that lead to a token, each pair once: the first time it is listed counts."""
    pairs: dict[tuple[str, str], None] = {}
    for merge in merges:
        # The space that separates is never the first character; a part may begin with one.
        middle = merge.find(" ", 1)
        if middle < 0:
            raise ModelError(f"the merge {merge!r} is not two texts with a space between")
        pair = merge[:middle], merge[middle + 1 :]
        if pair[0] in vocabulary.ids and pair[1] in vocabulary.ids and pair[0] + pair[1] in vocabulary.ids:
            pairs.setdefault(pair)
    return list(pairs)
