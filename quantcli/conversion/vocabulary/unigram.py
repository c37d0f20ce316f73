"""Convert Unigram vocabularies of SentencePiece or tokenizer.json.

Source: `T5Model.set_vocab` and `_xlmroberta_set_vocab` of llama.cpp's `conversion/t5.py` and `bert.py`.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Final

from quantcli.conversion.vocabulary import hugging_face
from quantcli.conversion.vocabulary.files import ADDED_TOKENS, Request
from quantcli.conversion.vocabulary.sentencepiece import PADDING_SCORE, complete, piece_table
from quantcli.conversion.vocabulary.special import special_metadata
from quantcli.conversion.vocabulary.tokens import ADDED_TOKEN_SCORE, TokenTable, token_text
from quantcli.core.errors import FormatError, ModelError
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.spec import Metadata, ValueType, array, boolean, string, u32
from quantcli.formats.gguf.vocabulary import TokenType

_FAIRSEQ_HEAD: Final = {
    "<s>": TokenType.CONTROL,
    "<pad>": TokenType.CONTROL,
    "</s>": TokenType.CONTROL,
    "<unk>": TokenType.UNKNOWN,
}
_REPLACED_PIECES: Final = 3
"""How many pieces the head replaces. All later ids are shifted by one."""

_UNKNOWN_ID: Final = 3

_LENGTH: Final = 4
"""Bytes of the length field at the start of a precompiled character map."""

_ASSUMED: Final = {
    "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
    "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip
"""The defaults of XLM-RoBERTa's class in transformers for roles that tokenizer_config.json does not name."""


def from_sentencepiece_unigram(request: Request) -> Metadata:
    """The pieces of a SentencePiece unigram model, with the numbering of fairseq if the rules say so.

    Raises:
        ModelError: if there are more pieces than embeddings.
    """
    files, model = request.files, request.files.sentencepiece_model
    size = request.vocabulary_size or len(model.pieces)
    if len(model.pieces) > size:
        raise ModelError(f"{files.sentencepiece}: {len(model.pieces)} pieces, but the model has only {size} embeddings")
    table = piece_table(model.pieces, size)
    if request.rules.fairseq_ids:
        kept = slice(_REPLACED_PIECES, -1)
        table = TokenTable(
            [*_FAIRSEQ_HEAD, *table.texts[kept]],
            [*[0.0] * len(_FAIRSEQ_HEAD), *table.scores[kept]],
            [*_FAIRSEQ_HEAD.values(), *table.types[kept]],
        )
        for text, id_ in request.rules.missing_texts.items():
            if id_ < len(table):
                table.put(id_, text, 0.0, TokenType.CONTROL)
    else:
        for text, id_ in (files.checkpoint.json(ADDED_TOKENS) or {}).items():
            if 0 <= id_ < size:
                table.put(id_, text, ADDED_TOKEN_SCORE, TokenType.USER_DEFINED)
    complete(table, files)
    return _metadata(
        request,
        table,
        space_prefix=model.add_dummy_prefix,
        merge_spaces=model.remove_extra_whitespaces,
        character_map=model.precompiled_character_map,
    )


def from_unigram(request: Request) -> Metadata:
    """The pieces of a Unigram model in tokenizer.json; spaces are handled as the configuration says.

    Raises:
        ModelError: if there are more pieces than embeddings.
    """
    files = request.files
    pieces: list[tuple[str, float]] = [(text, float(score)) for text, score in files.model["vocab"]]
    size = request.vocabulary_size or len(pieces)
    if len(pieces) > size:
        raise ModelError(f"{files.tokenizer_path}: {len(pieces)} pieces, but the model has only {size} embeddings")
    added = {token["content"]: token for token in files.tokenizer.get("added_tokens") or []}
    named = dict(files.named_tokens)
    if files.as_reference:  # llama.cpp uses transformers, for which only named or default special tokens are special
        named = _ASSUMED | named
    special = {*hugging_face.special_texts(named)}
    if not files.as_reference:
        special |= {text for text, token in added.items() if token.get("special")}
    unknown = token_text(files.configuration.get("unk_token"))
    unknown_id = added[unknown]["id"] if unknown in added else files.model.get("unk_id", _UNKNOWN_ID)
    table = TokenTable()
    for id_, (text, score) in enumerate(pieces):
        type_ = TokenType.UNKNOWN if id_ == unknown_id else TokenType.CONTROL if text in special else None
        table.append(text, score, type_ or (TokenType.USER_DEFINED if text in added else TokenType.NORMAL))
    table.pad(size, PADDING_SCORE)
    complete(table, files)
    return _metadata(
        request,
        table,
        space_prefix=bool(files.configuration.get("add_prefix_space", True)),
        merge_spaces=bool(files.configuration.get("clean_up_tokenization_spaces", False)),
        character_map=_character_map(files.tokenizer.get("normalizer")),
    )


def _character_map(normalizer: Mapping[str, Any] | None) -> bytes:
    """The precompiled character map of a normalizer; empty if it has none."""
    steps = [normalizer or {}]
    for step in steps:
        if step.get("type") == "Precompiled":
            return b64decode(step["precompiled_charsmap"])
        steps.extend(step.get("normalizers", []))
    return b""


def _check_map(request: Request, character_map: bytes) -> None:
    """Refuse a map without replacements after its length and trie: llama.cpp does not load such a file."""
    if len(character_map) < _LENGTH or int.from_bytes(character_map[:_LENGTH], "little") + _LENGTH >= len(character_map):
        place = request.files.sentencepiece or request.files.tokenizer_path or request.files.checkpoint.directory
        raise FormatError(place, f"the precompiled character map of its normalizer, {len(character_map)} bytes, is damaged")


def _metadata(
    request: Request, table: TokenTable, *, space_prefix: bool, merge_spaces: bool, character_map: bytes
) -> Metadata:
    metadata: Metadata = {spec.MODEL: string("t5"), spec.PRE_TOKENIZER: string("default")}
    metadata |= table.metadata(scores=True)
    metadata[spec.ADD_SPACE_PREFIX] = boolean(space_prefix)
    if request.token_types is not None:
        metadata[spec.TOKEN_TYPE_COUNT] = u32(request.token_types)
    metadata[spec.REMOVE_EXTRA_WHITESPACE] = boolean(merge_spaces)
    if character_map:
        _check_map(request, character_map)
        metadata[spec.PRECOMPILED_CHARACTER_MAP] = array(ValueType.UINT8, list(character_map))
    return metadata | special_metadata(request.files, len(table))
