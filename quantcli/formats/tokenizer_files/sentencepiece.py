"""Read SentencePiece's `tokenizer.model`: the pieces of the vocabulary with their scores, and the normalizer's settings.

The file is one protocol buffer message, `ModelProto` of `sentencepiece_model.proto`. A vocabulary needs few of its fields,
so they are parsed from the wire format, without generated code and its runtime.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

from quantcli.core.errors import FormatError
from quantcli.formats.gguf.vocabulary import TokenType


class Algorithm(IntEnum):
    """`TrainerSpec.ModelType`."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


class Piece(NamedTuple):
    """A token of the vocabulary. Its id is its index in the list."""

    text: str
    score: float
    type: TokenType


@dataclass(frozen=True)
class SentencePieceModel:
    """The contents of a `tokenizer.model`. The defaults are those of the message definition."""

    pieces: list[Piece]
    algorithm: Algorithm = Algorithm.UNIGRAM
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    precompiled_character_map: bytes = b""


# Field numbers of the messages.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_ALGORITHM: Final = 3
_NORMALIZER_CHARACTER_MAP, _NORMALIZER_DUMMY_PREFIX, _NORMALIZER_EXTRA_WHITESPACES = 2, 3, 4

# Wire types of the protocol buffer encoding.
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES: Final = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_SHIFT: Final = 63


def read_sentencepiece_model(path: Path) -> SentencePieceModel:
    """Read a `tokenizer.model`.

    Raises:
        FormatError: if the file is not such a message, is truncated, or has no pieces.
    """
    try:
        model = _parse_model(path.read_bytes())
    except (ValueError, IndexError, struct.error) as error:
        raise FormatError(path, f"not a SentencePiece model ({error})") from error
    if not model.pieces:
        raise FormatError(path, "not a SentencePiece model: it has no pieces")
    return model


def _parse_model(message: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(message):
        if number == _PIECES:
            pieces.append(_parse_piece(_message(value)))
        elif number == _TRAINER:
            trainer.update(_fields(_message(value)))
        elif number == _NORMALIZER:
            normalizer.update(_fields(_message(value)))
    return SentencePieceModel(
        pieces,
        Algorithm(_integer(trainer.get(_TRAINER_ALGORITHM, Algorithm.UNIGRAM))),
        bool(normalizer.get(_NORMALIZER_DUMMY_PREFIX, True)),
        bool(normalizer.get(_NORMALIZER_EXTRA_WHITESPACES, True)),
        _message(normalizer.get(_NORMALIZER_CHARACTER_MAP, b"")),
    )


def _parse_piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    (score,) = struct.unpack("<f", _message(fields.get(_PIECE_SCORE, b"\0\0\0\0")))
    return Piece(
        _message(fields.get(_PIECE_TEXT, b"")).decode("utf-8"),
        score,
        TokenType(_integer(fields.get(_PIECE_TYPE, TokenType.NORMAL))),
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in order, as number and value: an int for varints, bytes for all others."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == _LENGTH_DELIMITED:
            size, position = _varint(message, position)
        elif wire_type in _FIXED_SIZES:
            size = _FIXED_SIZES[wire_type]
        else:
            raise ValueError(f"wire type {wire_type} of field {number} is unknown")
        if position + size > end:
            raise ValueError(f"field {number} of {size} bytes ends after its message")
        yield number, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A little-endian base-128 integer at `position`, and the position after it."""
    value = shift = 0
    while shift <= _MAX_VARINT_SHIFT:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("an integer is longer than 64 bits")


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("an integer where a message is expected")
    return value


def _integer(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("a message where an integer is expected")
    return value
