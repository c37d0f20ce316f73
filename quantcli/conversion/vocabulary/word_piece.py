"""Convert WordPiece vocabularies of tokenizer.json or of BERT's vocab.txt.

Source: `BertModel.set_vocab` of llama.cpp's `conversion/bert.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tokenizers import Tokenizer

from quantcli.architectures.pre_tokenizers import name_by_hash
from quantcli.conversion.vocabulary import hugging_face
from quantcli.conversion.vocabulary.files import Request
from quantcli.conversion.vocabulary.plain_files import bert_tokens
from quantcli.conversion.vocabulary.pre_tokenizer import test_ids
from quantcli.conversion.vocabulary.special import NO_IDS, special_metadata
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.spec import Metadata, string, u32
from quantcli.formats.gguf.vocabulary import WORD_START, TokenType

_CONTINUES: Final = "##"
_ASSUMED: Final = {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103}
"""The special tokens of BERT's first vocabularies, which are llama.cpp's defaults."""

_ANY: Final = "default"
"""The name of a pre-tokenizer with an unknown hash: readers of WordPiece do not use it."""


def from_word_piece(request: Request) -> Metadata:
    """The metadata of a WordPiece vocabulary.

    A token that begins a word gets the prefix `WORD_START`. One that continues a word loses its prefix `##`.
    """
    files, tokenizer = request.files, hugging_face.load(request.files)
    table = hugging_face.listed_tokens(files, tokenizer, request.vocabulary_size)
    table.texts = [_marked(text, type_) for text, type_ in zip(table.texts, table.types, strict=True)]
    metadata: Metadata = {}
    if request.token_types is not None:
        metadata[spec.TOKEN_TYPE_COUNT] = u32(request.token_types)
    known = filter(None, map(name_by_hash, test_ids(files, tokenizer)))
    name = request.pre_tokenizer or next(known, _ANY)
    metadata |= {spec.MODEL: string("bert"), spec.PRE_TOKENIZER: string(name)} | table.metadata(scores=False)
    untold = files.tokenizer_path is None and not files.as_reference
    late = _unlike_assumed(tokenizer, files.configuration) if untold else NO_IDS
    return metadata | special_metadata(files, len(table), late=late)


def _unlike_assumed(tokenizer: Tokenizer, configuration: Mapping[str, Any]) -> dict[str, int]:
    """The ids of the special tokens, if one of them is not the default; else empty.

    llama.cpp's converter reads special tokens only from tokenizer.json. Without it, its files rely on the defaults.
    """
    ids: dict[str, int] = {}
    for role, text in bert_tokens(configuration).items():
        id_ = tokenizer.token_to_id(text)
        if id_ is not None:
            ids["bos" if role == "cls" else role] = id_
    return {} if ids.items() <= _ASSUMED.items() else ids


def _marked(text: str, type_: TokenType) -> str:
    if type_ is TokenType.CONTROL:
        return text
    return text.removeprefix(_CONTINUES) if text.startswith(_CONTINUES) else WORD_START + text
