"""WordPiece: split a text into words and punctuation, and cover each word with the longest tokens from the left.

All of it runs in `tokenizers`, with the normalization of BERT. Where `llm_tokenizer_wpm_session` of llama.cpp differs (it
keeps only the first character of what decomposes, as Hangul, and knows no longest word) this is what the models know.
In GGUF a token that begins a word is written with `WORD_START` in front, and one that continues it without BERT's `##`.
"""

from __future__ import annotations

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
"""Characters of a word beyond which it is unknown: what every BERT has."""


class WordPieceModel:
    """Encodes by longest match, and tells the bytes of its tokens."""

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

    def encode(self, text: str) -> list[int]:
        """The ids of a text that holds no special token."""
        (encoding,) = self._tokenizer.encode_batch_fast([without_stray_bytes(text)], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def piece(self, id_: int) -> bytes:
        """The bytes a token stands for."""
        return sentencepiece_bytes(self._vocabulary, id_)


def _spelled(vocabulary: Vocabulary, id_: int) -> str:
    """A token as BERT's own vocabulary has it."""
    text = vocabulary.texts[id_]
    if text.startswith(WORD_START):
        return text[len(WORD_START) :]
    return text if vocabulary.attributes[id_] & HIDDEN else _CONTINUES + text
