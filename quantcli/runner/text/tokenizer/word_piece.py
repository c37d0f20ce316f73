"""WordPiece: splits a text into words and punctuation, and each word into tokens by greedy longest match.

It runs in Hugging Face's `tokenizers`, with BERT's normalizer and pre-tokenizer. `llm_tokenizer_wpm_session` of llama.cpp
differs from what models were trained with: it keeps only the first character of a decomposition, as of Hangul, and has no
limit on a word's length. In GGUF, a token that begins a word has the prefix `WORD_START`, and one that continues a word has
no prefix, in place of BERT's `##`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from quantcli.core.errors import ModelError, shown
from quantcli.formats.gguf.vocabulary import WORD_START
from quantcli.runner.text.tokenizer.sentencepiece import sentencepiece_bytes
from quantcli.runner.text.tokenizer.vocabulary import HIDDEN, Vocabulary, is_text, without_stray_bytes

_CONTINUES: Final = "##"
_LONGEST_WORD: Final = 100
"""Words of more characters become the unknown token (max_input_chars_per_word), as in every BERT."""


class WordPieceModel:
    """WordPiece with a vocabulary."""

    def __init__(self, vocabulary: Vocabulary, *, lowercase: bool, strip_accents: bool) -> None:
        self._vocabulary = vocabulary
        spelled = {_spelled(vocabulary, id_): id_ for id_ in range(len(vocabulary))}
        ids = {text: id_ for text, id_ in spelled.items() if is_text(text)}
        unknown = _spelled(vocabulary, vocabulary.special.get("unk", 0))
        if unknown not in ids:
            raise ModelError(f"the unknown token {shown(unknown)} is not UTF-8")
        self._tokenizer = Tokenizer(
            WordPiece(
                vocab=ids, unk_token=unknown, max_input_chars_per_word=_LONGEST_WORD, continuing_subword_prefix=_CONTINUES
            )
        )
        self._tokenizer.normalizer = BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    def encode(self, text: str) -> Iterator[int]:
        """The token ids of a text without special tokens."""
        (encoding,) = self._tokenizer.encode_batch_fast([without_stray_bytes(text)], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return iter(ids)

    def piece(self, id_: int) -> bytes:
        """The bytes of a token."""
        return sentencepiece_bytes(self._vocabulary, id_)


def _spelled(vocabulary: Vocabulary, id_: int) -> str:
    """A token's string in BERT's own notation, with `##` for continuations."""
    text = vocabulary.texts[id_]
    if text.startswith(WORD_START):
        return text[len(WORD_START) :]
    return text if vocabulary.attributes[id_] & HIDDEN else _CONTINUES + text
