"""Byte-level BPE: a pre-tokenizer splits the text by regular expressions, bytes are mapped as in GPT-2, pairs are merged.

It runs in Hugging Face's `tokenizers`, whose regular expression engine (Oniguruma) the patterns were written for.
Source of the conventions: `llm_tokenizer_bpe_session` of llama.cpp's `llama-vocab.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Replace
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from quantcli.architectures.pre_tokenizers import PreTokenizer
from quantcli.core.errors import UnsupportedError
from quantcli.formats.gguf.vocabulary import BYTES, WORD_START
from quantcli.runner.text.tokenizer.sentencepiece import sentencepiece_bytes
from quantcli.runner.text.tokenizer.vocabulary import Attribute, Vocabulary, is_text, without_stray_bytes


class ByteLevelModel:
    """Byte-level BPE with the merges of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary, merges: list[str], pre_tokenizer: PreTokenizer) -> None:
        if pre_tokenizer.patterns is None:
            raise UnsupportedError(f"the pre-tokenizer {pre_tokenizer.name!r} is not supported for tokenizing")
        self._vocabulary = vocabulary
        self._plain = pre_tokenizer.plain
        ids = {text: id_ for text, id_ in vocabulary.ids.items() if is_text(text)}
        self._tokenizer = Tokenizer(
            BPE(
                ids,
                _pairs(ids, merges),
                ignore_merges=pre_tokenizer.ignore_merges,
                byte_fallback=self._plain,
            )
        )
        if pre_tokenizer.normalizer is not None:
            self._tokenizer.normalizer = _NORMALIZERS[pre_tokenizer.normalizer]()
        elif self._plain:
            self._tokenizer.normalizer = Replace(" ", WORD_START)
        splits = [Split(Regex(pattern), "isolated") for pattern in pre_tokenizer.patterns]
        spelling = [] if self._plain else [ByteLevel(add_prefix_space=False, use_regex=False)]
        self._tokenizer.pre_tokenizer = Sequence([*splits, *spelling])

    def encode(self, text: str) -> list[int]:
        """The token ids of a text without special tokens."""
        # The fast variant does not track offsets.
        (encoding,) = self._tokenizer.encode_batch_fast([without_stray_bytes(text)], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

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


def _pairs(ids: Mapping[str, int], merges: list[str]) -> list[tuple[str, str]]:
    """The merges as pairs, without those whose parts or result are not tokens. Of duplicates, the first counts.

    As in llama.cpp, an invalid merge is ignored.
    """
    pairs: dict[tuple[str, str], None] = {}
    for merge in merges:
        # The separator is never the first character: the left part may begin with a space.
        middle = merge.find(" ", 1)
        pair = merge[: max(0, middle)], merge[middle + 1 :]
        if pair[0] in ids and pair[1] in ids and pair[0] + pair[1] in ids:
            pairs.setdefault(pair)
    return list(pairs)
