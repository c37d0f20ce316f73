"""A SentencePiece `tokenizer.model` to GGUF: pieces, scores and types, then the tokens added around it.

Source: `_create_vocab_sentencepiece` of llama.cpp's converter.
"""

from __future__ import annotations

from typing import Final

from quantcli.conversion.vocabulary.files import TokenizerFiles
from quantcli.conversion.vocabulary.tokens import ADDED_TOKEN_SCORE, TokenTable, added_token
from quantcli.formats.sentencepiece_model import read_sentencepiece_model
from quantcli.formats.vocabulary_spec import TokenType

_PADDING_SCORE: Final = -10000.0
_TYPES: Final = {TokenType.USER_DEFINED: TokenType.NORMAL}
"""Piece types that change: what the trainer's user defined merges like any other piece."""


def sentencepiece_tokens(files: TokenizerFiles, vocabulary_size: int | None) -> TokenTable:
    """The pieces of tokenizer.model and the tokens added in side files, `vocabulary_size` of them (None: one per piece).

    Tokens at ids beyond it have no embedding and are left out.

    Raises:
        FormatError: if tokenizer.model is not a SentencePiece model.
    """
    assert files.sentencepiece is not None
    pieces = read_sentencepiece_model(files.sentencepiece).pieces
    size = vocabulary_size or len(pieces)
    table = TokenTable()
    for piece in pieces[:size]:
        table.append(piece.text, piece.score, _TYPES.get(piece.type, piece.type))
    table.pad(size, _PADDING_SCORE)

    for text, id_ in (files.checkpoint.json("added_tokens.json") or {}).items():
        if 0 <= id_ < size:
            table.put(id_, text, ADDED_TOKEN_SCORE, TokenType.USER_DEFINED)
    for key, attributes in files.configuration.get("added_tokens_decoder", {}).items():
        if 0 <= int(key) < size:
            text, type_ = added_token(attributes["content"], attributes)
            table.put(int(key), text, ADDED_TOKEN_SCORE, type_)
    return table
