"""Convert a SentencePiece `tokenizer.model`: pieces, scores and types, then the added tokens.

Source: `_create_vocab_sentencepiece` of llama.cpp's converter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from quantcli.architectures.schema import VocabularyRules
from quantcli.conversion.vocabulary.files import ADDED_TOKENS, TokenizerFiles
from quantcli.conversion.vocabulary.tokens import ADDED_TOKEN_SCORE, TokenTable, added_token
from quantcli.formats.gguf.vocabulary import TokenType
from quantcli.formats.tokenizer_files.sentencepiece import Piece

PADDING_SCORE: Final = -10000.0
_TYPES: Final = {TokenType.USER_DEFINED: TokenType.NORMAL}
"""Piece types that change: pieces that the trainer's user defined are merged like normal ones."""


def piece_table(pieces: Sequence[Piece], size: int) -> TokenTable:
    """The first `size` pieces, padded to `size` with unused tokens."""
    table = TokenTable()
    for piece in pieces[:size]:
        table.append(piece.text, piece.score, _TYPES.get(piece.type, piece.type))
    table.pad(size, PADDING_SCORE)
    return table


def sentencepiece_tokens(files: TokenizerFiles, vocabulary_size: int | None, rules: VocabularyRules) -> TokenTable:
    """The pieces of tokenizer.model and the tokens added in side files, `vocabulary_size` of them (None: one per piece).

    Tokens at ids beyond it have no embedding and are left out.

    Raises:
        FormatError: if tokenizer.model is not a SentencePiece model.
    """
    pieces = files.sentencepiece_model.pieces
    size = vocabulary_size or len(pieces)
    table = piece_table(pieces, size)
    for id_, text in enumerate(table.texts):
        if rules.unused_pieces and text.startswith(rules.unused_pieces):
            table.types[id_] = TokenType.UNUSED
        table.texts[id_] = rules.piece_texts.get(text, text)
    for text, id_ in (files.checkpoint.json(ADDED_TOKENS) or {}).items():
        if 0 <= id_ < size:
            table.put(id_, text, ADDED_TOKEN_SCORE, TokenType.USER_DEFINED)
    added = [(int(key), token) for key, token in files.configuration.get("added_tokens_decoder", {}).items()]
    if rules.literal_added:
        added += [(token["id"], token) for token in files.tokenizer.get("added_tokens") or []]
    for id_, token in added:
        if not 0 <= id_ < size:
            continue
        text, type_ = token["content"], TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
        if not rules.literal_added:
            text, type_ = added_token(text, token)
        table.put(id_, text, ADDED_TOKEN_SCORE, type_)
    if not rules.literal_added:
        complete(table, files)
    return table


def complete(table: TokenTable, files: TokenizerFiles) -> None:
    """Put the added tokens of all files into a table of pieces.

    llama.cpp's converter reads fewer files and leaves `[PAD...]` at their ids. transformers 5 writes them only to
    tokenizer.json.
    """
    if files.as_reference:
        return
    for id_, token in files.added_tokens():
        if not 0 <= id_ < len(table):
            continue
        text, type_ = added_token(token["content"], token)
        kept = token["content"], text
        if table.texts[id_] not in kept or (table.types[id_] is TokenType.NORMAL and type_ is not TokenType.NORMAL):
            table.put(id_, text, ADDED_TOKEN_SCORE, type_)
