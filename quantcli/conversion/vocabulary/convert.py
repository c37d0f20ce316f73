"""Convert a checkpoint's vocabulary from the first tokenizer file that is usable, and apply the architecture's rules.

Source: the methods `set_vocab` and `_set_vocab_*` of llama.cpp's converter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from quantcli.architectures.gguf_fields import FIELD_TYPES, LARGEST_FLOAT
from quantcli.architectures.schema import VocabularyRules
from quantcli.conversion.vocabulary import hugging_face
from quantcli.conversion.vocabulary.end_tokens import missing_end_tokens
from quantcli.conversion.vocabulary.files import MERGES, SOUGHT, VOCABULARY, WORDS, Request, TokenizerFiles
from quantcli.conversion.vocabulary.pre_tokenizer import check_pre_tokenizer, pre_tokenizer_name
from quantcli.conversion.vocabulary.ranks import from_ranks
from quantcli.conversion.vocabulary.sentencepiece import sentencepiece_tokens
from quantcli.conversion.vocabulary.special import special_metadata
from quantcli.conversion.vocabulary.step_bounds import is_bounded, runs_steps
from quantcli.conversion.vocabulary.tekken import from_tekken
from quantcli.conversion.vocabulary.tokens import TokenTable, without_duplicate_texts
from quantcli.conversion.vocabulary.unigram import from_sentencepiece_unigram, from_unigram
from quantcli.conversion.vocabulary.word_piece import from_word_piece
from quantcli.core import isolated
from quantcli.core.errors import FormatError, ModelError, UnsupportedError, one_line
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.spec import Metadata, ValueType, array, boolean, string, u32
from quantcli.formats.tokenizer_files.sentencepiece import Algorithm

if TYPE_CHECKING:
    from quantcli.formats.checkpoint.checkpoint import Checkpoint

NO_RULES: Final = VocabularyRules()
"""The rules of an architecture that has none."""


def vocabulary_metadata(
    checkpoint: Checkpoint,
    vocabulary_size: int | None,
    *,
    rules: VocabularyRules = NO_RULES,
    pre_tokenizer: str | None = None,
    configuration: Mapping[str, Any] | None = None,
    as_reference: bool = False,
) -> Metadata:
    """All metadata of a checkpoint's tokenizer.

    Args:
        checkpoint: has the tokenizer files.
        vocabulary_size: the number of embeddings; None for one per token.
        rules: those of the architecture.
        pre_tokenizer: the name of a byte-level BPE's pre-tokenizer; None to recognise it.
        configuration: config.json with the defaults of its class; None for the file itself.
        as_reference: write the metadata of llama.cpp's converter, even where transformers reads the checkpoint differently.

    Raises:
        ModelError: if there is no tokenizer, or it does not fit the model.
        FormatError: if a tokenizer file cannot be read.
        UnsupportedError: if the algorithm or the pre-tokenizer is unknown.
        UsageError: if no pre-tokenizer is called `pre_tokenizer`.

    The steps of an unusual tokenizer.json run in another process, with limits on time and memory.
    """
    if pre_tokenizer is not None:
        check_pre_tokenizer(pre_tokenizer)
    files = TokenizerFiles.read(checkpoint, as_reference=as_reference)
    configuration = checkpoint.config if configuration is None else configuration
    if not runs_steps(files) or is_bounded(files.tokenizer):
        return _metadata(files, configuration, vocabulary_size, rules, pre_tokenizer)
    what = f"{files.tokenizer_path}: the steps of its tokenizer"
    arguments = (configuration, vocabulary_size, rules, pre_tokenizer)
    return isolated.call(_read_metadata, checkpoint.without_tensors(), as_reference, *arguments, what=what)


def _read_metadata(checkpoint: Checkpoint, as_reference: bool, *arguments: Any) -> Metadata:
    return _metadata(TokenizerFiles.read(checkpoint, as_reference=as_reference), *arguments)


def _metadata(
    files: TokenizerFiles,
    configuration: Mapping[str, Any],
    vocabulary_size: int | None,
    rules: VocabularyRules,
    pre_tokenizer: str | None,
) -> Metadata:
    with hugging_face.panics_as_errors(files):
        return _assembled(files, configuration, vocabulary_size, rules, pre_tokenizer)


def _assembled(
    files: TokenizerFiles,
    configuration: Mapping[str, Any],
    vocabulary_size: int | None,
    rules: VocabularyRules,
    pre_tokenizer: str | None,
) -> Metadata:
    checkpoint = files.checkpoint
    metadata: Metadata = {}
    space_prefix = files.configuration.get("add_prefix_space")
    if rules.copy_space_prefix and space_prefix is not None and not files.is_tekken:
        metadata[spec.ADD_SPACE_PREFIX] = boolean(space_prefix)
    metadata |= {spec.ADD_SPECIAL_TOKENS[role]: boolean(add) for role, add in rules.add.items()}
    try:
        token_types = _token_types(configuration) if rules.token_type_count else None
        request = Request(files, vocabulary_size, rules, pre_tokenizer, token_types)
        convert = next((convert for holds, convert in _SOURCES if holds(request)), None)
        if convert is None:
            raise _nothing_usable(request)
        added = {token["content"]: id_ for id_, token in files.added_tokens()}
        metadata |= _with_special(convert(request), _named(rules.special_texts, added))
        if not files.as_reference:
            metadata |= without_duplicate_texts(checkpoint.directory, metadata)
        if rules.chat_template:
            metadata[spec.CHAT_TEMPLATE] = string(rules.chat_template)
        decoder = files.configuration.get("added_tokens_decoder") or {}
        metadata |= _named(rules.replaced_texts, added | {token["content"]: int(id_) for id_, token in decoder.items()})
        metadata |= _replaced(checkpoint, rules, configuration)
        if not files.as_reference:
            metadata |= missing_end_tokens(files, metadata)
        _check_values(metadata)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        what = "a tokenizer file is valid JSON, but does not have the structure of a tokenizer file"
        raise FormatError(checkpoint.directory, f"{what} ({type(error).__name__}: {one_line(error)})") from error
    for role, id_ in {**rules.special, **rules.special_by_size.get(vocabulary_size or 0, {})}.items():
        metadata.setdefault(spec.SPECIAL_TOKENS[role], u32(id_))
    for role, add in rules.add_by_size.get(vocabulary_size or 0, {}).items():
        metadata[spec.ADD_SPECIAL_TOKENS[role]] = boolean(add)
    if rules.space_prefix is not None:
        metadata[spec.ADD_SPACE_PREFIX] = boolean(rules.space_prefix)
    return metadata


def _named(texts: Mapping[str, str], added: Mapping[str, int]) -> Metadata:
    """The special tokens of roles whose text is that of an added token."""
    return {spec.SPECIAL_TOKENS[role]: u32(added[text]) for role, text in texts.items() if text in added}


def _with_special(converted: Metadata, special: Metadata) -> Metadata:
    """The metadata of a tokenizer with special tokens that it lacks, before the keys that say which are added to a text."""
    flags = {*spec.ADD_SPECIAL_TOKENS.values()}
    entries = list(converted.items())
    places = (place for place, (key, _) in enumerate(entries) if key in flags or key.startswith(spec.CHAT_TEMPLATE))
    end = next(places, len(entries))
    lacking = {key: field for key, field in special.items() if key not in converted}
    return {**dict(entries[:end]), **lacking, **dict(entries[end:])}


def _replaced(checkpoint: Checkpoint, rules: VocabularyRules, configuration: Mapping[str, Any]) -> Metadata:
    """The special tokens for which the architecture's rules replace those of the checkpoint's tokenizer."""
    ids = {role: configuration.get(id_) if isinstance(id_, str) else id_ for role, id_ in rules.replaced.items()}
    if rules.first_end:
        ends = checkpoint.generation_config().get("eos_token_id")
        ids[rules.first_end] = ends[0] if isinstance(ends, list) and len(ends) > 1 else None
    return {spec.SPECIAL_TOKENS[role]: FIELD_TYPES["u32"](id_) for role, id_ in ids.items() if id_ is not None}


def _check_values(metadata: Metadata) -> None:
    """Refuse values that GGUF cannot hold.

    Raises:
        TypeError, ValueError: if a string is not a string or not Unicode, or a number is out of range for its type.
    """
    for key, field in metadata.items():
        values = field.value if field.type is ValueType.ARRAY else [field.value]
        kind = field.element or field.type
        if kind is ValueType.STRING:
            "".join(values).encode("utf-8")
        elif kind is ValueType.UINT32 and not all(0 <= value < 1 << 32 for value in values):
            raise ValueError(f"{key} would be {values[0]}")
        elif kind is ValueType.FLOAT32 and not all(abs(value) <= LARGEST_FLOAT for value in values):
            raise ValueError(f"{key} would hold a number that is not finite")


def _token_types(configuration: Mapping[str, Any]) -> int:
    return int(configuration.get("type_vocab_size") or 1)


def _nothing_usable(request: Request) -> ModelError | UnsupportedError:
    files = request.files
    if files.tokenizer_path is None:
        usual = request.rules.usual_tokenizer
        hint = f"Models of this architecture often come without one: put the {usual} there." if usual else None
        return ModelError(f"{files.checkpoint.directory}: no tokenizer; looked for {SOUGHT}", hint=hint)
    kind = files.model.get("type", "no model")
    return UnsupportedError(f"{files.tokenizer_path}: holds {kind}, expected BPE, WordPiece or Unigram")


def _from_sentencepiece(request: Request) -> Metadata:
    return _scored(request, sentencepiece_tokens(request.files, request.vocabulary_size, request.rules))


def _from_byte_fallback(request: Request) -> Metadata:
    tokenizer = hugging_face.load(request.files)
    flat = request.rules.flat_scores and request.files.as_reference
    table = hugging_face.byte_fallback_tokens(request.files, tokenizer, request.vocabulary_size, flat_scores=flat)
    return _scored(request, table)


def _scored(request: Request, table: TokenTable) -> Metadata:
    metadata = {spec.MODEL: string("llama"), spec.PRE_TOKENIZER: string("default")}
    metadata |= table.metadata(scores=True)
    if request.rules.copy_dummy_prefix and request.files.sentencepiece is not None:
        metadata[spec.ADD_SPACE_PREFIX] = boolean(request.files.sentencepiece_model.add_dummy_prefix)
    given = request.files.configuration.get("add_prefix_space") if request.rules.late_space_prefix else None
    if given is not None:
        metadata[spec.ADD_SPACE_PREFIX] = boolean(given)
    return metadata | special_metadata(request.files, len(table))


def _from_byte_level(request: Request) -> Metadata:
    files, tokenizer = request.files, hugging_face.load(request.files)
    name = pre_tokenizer_name(request, tokenizer)
    table = hugging_face.listed_tokens(files, tokenizer, request.vocabulary_size)
    metadata = {spec.MODEL: string("gpt2"), spec.PRE_TOKENIZER: string(name)} | table.metadata(scores=False)
    metadata[spec.MERGES] = array(ValueType.STRING, hugging_face.merges(files))
    metadata |= special_metadata(files, None)
    if request.token_types is not None:
        metadata[spec.TOKEN_TYPE_COUNT] = u32(request.token_types)
    return metadata


def _is_sentencepiece_unigram(request: Request) -> bool:
    files = request.files
    if files.sentencepiece is None or not request.rules.unigram:
        return False
    return files.sentencepiece_model.algorithm is Algorithm.UNIGRAM


_SOURCES: Final[tuple[tuple[Callable[[Request], bool], Callable[[Request], Metadata]], ...]] = (
    (lambda request: request.files.is_tekken, from_tekken),
    (_is_sentencepiece_unigram, from_sentencepiece_unigram),
    (lambda request: request.files.sentencepiece is not None, _from_sentencepiece),
    (lambda request: hugging_face.has_byte_fallback(request.files), _from_byte_fallback),
    (lambda request: hugging_face.is_byte_level(request.files), _from_byte_level),
    (lambda request: hugging_face.holds(request.files, "WordPiece"), from_word_piece),
    (lambda request: hugging_face.holds(request.files, "Unigram"), from_unigram),
    (lambda request: request.files.ranks is not None, from_ranks),
    (lambda request: request.files.has_alone(VOCABULARY, MERGES), _from_byte_level),
    (lambda request: request.files.has_alone(WORDS), from_word_piece),
)
"""The sources of a vocabulary: whether a checkpoint has it, and its conversion. The first one it has is used."""
