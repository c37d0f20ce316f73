"""The begin and end tokens that llama.cpp's converter does not find: docs/departures.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from quantcli.conversion.vocabulary.files import TokenizerFiles
from quantcli.conversion.vocabulary.special import ends_of_generation
from quantcli.conversion.vocabulary.tokens import token_text
from quantcli.core.errors import warn
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.spec import Metadata, u32
from quantcli.formats.gguf.vocabulary import TokenType

_MORE_ENDS: Final = ("eot", "eom")
"""The roles for end tokens besides `eos`: end of turn, end of message."""


def missing_end_tokens(files: TokenizerFiles, found: Metadata) -> Metadata:
    """The ids of begin and end tokens that `found`, the metadata of the vocabulary, lacks.

    These are the tokens of the vocabulary that tokenizer_config.json names as `bos` and `eos`, and all end tokens of
    generation_config.json or config.json, as far as GGUF has keys for them.
    """
    named = _named(files, found)
    return named | _others(files, found | named)


def _named(files: TokenizerFiles, found: Metadata) -> Metadata:
    tokens = found[spec.TOKENS].value
    texts = {role: token_text(files.named_tokens.get(f"{role}_token")) for role in ("bos", "eos")}
    return {
        spec.SPECIAL_TOKENS[role]: u32(tokens.index(text))
        for role, text in texts.items()
        if spec.SPECIAL_TOKENS[role] not in found and text in tokens
    }


def _others(files: TokenizerFiles, found: Metadata) -> Metadata:
    tokens, free = found[spec.TOKENS].value, [role for role in _MORE_ENDS if spec.SPECIAL_TOKENS[role] not in found]
    metadata: Metadata = {}
    for id_ in _unknown_ends(files, found):
        if free:
            metadata[spec.SPECIAL_TOKENS[free.pop(0)]] = u32(id_)
        else:
            warn(f"{files.checkpoint.directory}: GGUF has no key for another end token, {tokens[id_]!r} ({id_})")
    return metadata


def _unknown_ends(files: TokenizerFiles, found: Metadata) -> Iterator[int]:
    """The ids of end tokens that readers recognise neither by a key nor by their text.

    Normal tokens are left out: config.json may be that of the base model, with another vocabulary.
    """
    tokens, types = found[spec.TOKENS].value, found[spec.TOKEN_TYPES].value
    known = {found[key].value for role in ("eos", *_MORE_ENDS) if (key := spec.SPECIAL_TOKENS[role]) in found}
    for id_ in dict.fromkeys(ends_of_generation(files.checkpoint)):
        if type(id_) is not int or not 0 <= id_ < len(tokens) or id_ in known:
            continue
        if types[id_] != TokenType.NORMAL and tokens[id_] not in spec.END_OF_GENERATION_TEXTS:
            yield id_
