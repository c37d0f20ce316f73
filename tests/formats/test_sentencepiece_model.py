"""Our reader of tokenizer.model against SentencePiece itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from quantcli.core.errors import FormatError
from quantcli.formats.gguf.vocabulary import TokenType
from quantcli.formats.tokenizer_files.sentencepiece import Algorithm, read_sentencepiece_model

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller" / "tokenizer.model"


def agrees_with_sentencepiece(path):
    model = read_sentencepiece_model(path)
    own = SentencePieceProcessor(model_file=str(path))
    kinds = {
        TokenType.UNKNOWN: own.IsUnknown,
        TokenType.CONTROL: own.IsControl,
        TokenType.UNUSED: own.IsUnused,
        TokenType.BYTE: own.IsByte,
    }
    assert len(model.pieces) == own.vocab_size()
    for id_, piece in enumerate(model.pieces):
        assert (piece.text, piece.score) == (own.IdToPiece(id_), own.GetScore(id_))
        assert [kind for kind, holds in kinds.items() if holds(id_)] == ([piece.type] if piece.type in kinds else [])
    return model


def test_pieces_equal_those_of_sentencepiece():
    model = agrees_with_sentencepiece(STORYTELLER)
    assert model.algorithm == Algorithm.BPE


@pytest.mark.parametrize("name", ["llama-2", "mistral-v0.3", "phi-3-mini"])
def test_pieces_of_large_models_equal_those_of_sentencepiece(shared, name):
    model = agrees_with_sentencepiece(shared / "tokenizers" / name / "tokenizer.model")
    assert model.add_dummy_prefix
    assert not model.remove_extra_whitespaces


def test_every_cut_is_refused_or_gives_fewer_pieces(tmp_path):
    whole = STORYTELLER.read_bytes()
    pieces = len(read_sentencepiece_model(STORYTELLER).pieces)
    path = tmp_path / "tokenizer.model"
    for length in range(0, 2000, 7):
        path.write_bytes(whole[:length])
        try:
            assert 0 < len(read_sentencepiece_model(path).pieces) < pieces
        except FormatError as error:
            assert "tokenizer.model" in error.message
