"""Which of the tokenizer files a vocabulary is taken from, and what an architecture adds to it.

Source: the methods `set_vocab` and `_set_vocab_*` of llama.cpp's converter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from quantcli.architectures.schema import VocabularyRules
from quantcli.conversion.vocabulary import hugging_face
from quantcli.conversion.vocabulary.files import SENTENCEPIECE_MODEL, TOKENIZER, TokenizerFiles
from quantcli.conversion.vocabulary.sentencepiece import sentencepiece_tokens
from quantcli.conversion.vocabulary.special import special_metadata
from quantcli.conversion.vocabulary.tokens import TokenTable
from quantcli.formats import vocabulary_spec as spec
from quantcli.formats.errors import FormatError, ModelError, UnsupportedError
from quantcli.formats.gguf_spec import Metadata, ValueType, array, boolean, string, u32
from quantcli.formats.sentencepiece_model import read_sentencepiece_model

if TYPE_CHECKING:
    from quantcli.formats.checkpoint import Checkpoint

NO_RULES: Final = VocabularyRules()
"""For architectures without any of their own."""


def vocabulary_metadata(
    checkpoint: Checkpoint,
    vocabulary_size: int | None,
    *,
    rules: VocabularyRules = NO_RULES,
    pre_tokenizer: str | None = None,
) -> Metadata:
    """All metadata of the checkpoint's tokenizer, for a model with `vocabulary_size` embeddings (None: one per token).

    `rules` are the architecture's; `pre_tokenizer` names the pre-tokenizer of a byte-level BPE instead of recognising it.

    Raises:
        ModelError: if there is no tokenizer, or it does not fit the model.
        FormatError: if a tokenizer file cannot be read.
        UnsupportedError: if the algorithm or the pre-tokenizer is unknown.
        UsageError: if no pre-tokenizer is called `pre_tokenizer`.
    """
    files = TokenizerFiles.read(checkpoint)
    convert = next((convert for holds, convert in _SOURCES if holds(files)), None)
    if convert is None:
        raise _nothing_usable(files)
    metadata: Metadata = {}
    space_prefix = files.configuration.get("add_prefix_space")
    if rules.copy_space_prefix and space_prefix is not None:
        metadata[spec.ADD_SPACE_PREFIX] = boolean(space_prefix)
    try:
        metadata |= convert(_Request(files, vocabulary_size, rules, pre_tokenizer))
        added = _added_tokens(files)
        for role, text in rules.special_texts.items():
            if text in added:
                metadata.setdefault(spec.SPECIAL_TOKENS[role], u32(added[text]))
        for role, text in rules.replaced_texts.items():
            if text in added:
                metadata[spec.SPECIAL_TOKENS[role]] = u32(added[text])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = "a tokenizer file is valid JSON, but not of the shape such files have"
        raise FormatError(checkpoint.directory, f"{what} ({type(error).__name__}: {error})") from error
    for role, id_ in {**rules.special, **rules.special_by_size.get(vocabulary_size or 0, {})}.items():
        metadata.setdefault(spec.SPECIAL_TOKENS[role], u32(id_))
    for role, add in rules.add_by_size.get(vocabulary_size or 0, {}).items():
        metadata[spec.ADD_SPECIAL_TOKENS[role]] = boolean(add)
    if rules.copy_dummy_prefix and files.sentencepiece is not None:
        metadata[spec.ADD_SPACE_PREFIX] = boolean(read_sentencepiece_model(files.sentencepiece).add_dummy_prefix)
    if rules.space_prefix is not None:
        metadata[spec.ADD_SPACE_PREFIX] = boolean(rules.space_prefix)
    return metadata


def _added_tokens(files: TokenizerFiles) -> dict[str, int]:
    """The ids of the tokens added around a vocabulary, by their texts."""
    configured = files.configuration.get("added_tokens_decoder", {})
    listed = files.tokenizer.get("added_tokens") or []
    return {token["content"]: int(id_) for id_, token in configured.items()} | {
        token["content"]: token["id"] for token in listed
    }


def _nothing_usable(files: TokenizerFiles) -> ModelError | UnsupportedError:
    if files.tokenizer_path is None:
        sought = f"looked for {SENTENCEPIECE_MODEL} and {TOKENIZER}"
        return ModelError(f"{files.checkpoint.directory}: no tokenizer; {sought}")
    kind = files.model.get("type", "no model")
    return UnsupportedError(f"{files.tokenizer_path}: holds {kind}, expected BPE")


@dataclass(frozen=True)
class _Request:
    """What a vocabulary is converted from and for."""

    files: TokenizerFiles
    vocabulary_size: int | None
    rules: VocabularyRules
    pre_tokenizer: str | None


def _from_sentencepiece(request: _Request) -> Metadata:
    return _scored(request, sentencepiece_tokens(request.files, request.vocabulary_size))


def _from_byte_fallback(request: _Request) -> Metadata:
    tokenizer = hugging_face.load(request.files)
    table = hugging_face.byte_fallback_tokens(
        request.files, tokenizer, request.vocabulary_size, flat_scores=request.rules.flat_scores
    )
    return _scored(request, table)


def _scored(request: _Request, table: TokenTable) -> Metadata:
    metadata = {spec.MODEL: string("llama"), spec.PRE_TOKENIZER: string("default")}
    return metadata | table.metadata(scores=True) | special_metadata(request.files, len(table))


def _from_byte_level(request: _Request) -> Metadata:
    files, tokenizer = request.files, hugging_face.load(request.files)
    name = (
        hugging_face.pre_tokenizer_name(files, tokenizer)
        if request.pre_tokenizer is None
        else hugging_face.check_pre_tokenizer(request.pre_tokenizer)
    )
    table = hugging_face.byte_level_tokens(files, tokenizer, request.vocabulary_size)
    metadata = {spec.MODEL: string("gpt2"), spec.PRE_TOKENIZER: string(name)} | table.metadata(scores=False)
    metadata[spec.MERGES] = array(ValueType.STRING, hugging_face.merges(files))
    return metadata | special_metadata(files, None)


_SOURCES: Final[tuple[tuple[Callable[[TokenizerFiles], bool], Callable[[_Request], Metadata]], ...]] = (
    (lambda files: files.sentencepiece is not None, _from_sentencepiece),
    (hugging_face.has_byte_fallback, _from_byte_fallback),
    (hugging_face.is_byte_level, _from_byte_level),
)
"""Where a vocabulary can come from: how to see it, how to convert it. The first that is there counts."""
