"""Tokenizer files from the vocabulary of a GGUF file: tokenizer.json, tokenizer_config.json, generation_config.json.

tokenizer.json is that of the tokenizers library. Each algorithm of GGUF has its own model there: byte-level BPE,
SentencePiece BPE (with merges derived from the scores), WordPiece, Unigram.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from quantcli.architectures.pre_tokenizers import pre_tokenizers
from quantcli.conversion.metadata.general import generation_parameters
from quantcli.core.errors import FormatError, UnsupportedError, one_line
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.spec import Metadata, boolean
from quantcli.formats.gguf.vocabulary import WORD_START, TokenType

Document = dict[str, Any]

TOKENIZER: Final = "tokenizer.json"
CONFIGURATION: Final = "tokenizer_config.json"
GENERATION: Final = "generation_config.json"

COPIED: Final = (
    TOKENIZER, CONFIGURATION, "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "chat_template.jinja", "chat_template.json", "tekken.json", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
"""The files of a tokenizer that are copied from a directory."""

_HINT: Final = "--tokenizer DIR takes the tokenizer of the original model"


def given_tokenizer(path: Path) -> dict[str, bytes]:
    """The tokenizer files at a path: a directory, or one file.

    Raises:
        FormatError: if there are none.
    """
    paths = [path / name for name in COPIED] if path.is_dir() else [path]
    found = {file.name: file.read_bytes() for file in paths if file.is_file()}
    if not found:
        raise FormatError(path, "no tokenizer file is there", hint=f"looked for {', '.join(COPIED[:3])} ...")
    return found


def tokenizer_files(metadata: Metadata, path: Path) -> dict[str, bytes]:
    """The tokenizer files of a vocabulary; empty where the metadata have none.

    Raises:
        UnsupportedError: for an algorithm or a pre-tokenizer that tokenizer.json cannot express.
        FormatError: if the vocabulary is not complete, or its metadata are of other types than a vocabulary's.
    """
    with _refusing(path):
        return _tokenizer(metadata, path)


def generation_files(metadata: Metadata, path: Path) -> dict[str, bytes]:
    """generation_config.json, where the metadata say something for it.

    Raises:
        FormatError: if the metadata are of other types than expected.
    """
    with _refusing(path):
        return _json({GENERATION: generation_config(metadata)})


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Refuse metadata of any types and values, which a file may have under the keys of a vocabulary."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"the metadata of the vocabulary have other types or values than expected ({one_line(error)})"
        raise FormatError(path, what, hint=_HINT) from error


def _json(documents: Mapping[str, Document]) -> dict[str, bytes]:
    """Documents that are not empty, as files."""
    texts = {name: json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) for name, value in documents.items()}
    return {name: text.encode() for name, text in texts.items() if documents[name]}


def _tokenizer(metadata: Metadata, path: Path) -> dict[str, bytes]:
    if spec.MODEL not in metadata or spec.TOKENS not in metadata:
        return {}
    algorithm = metadata[spec.MODEL].value
    make = _ALGORITHMS.get(algorithm)
    if make is None:
        raise UnsupportedError(f"{path}: the tokenizer {algorithm!r} cannot be exported", hint=_HINT)
    vocabulary = _Vocabulary(metadata, path)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added(),
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": vocabulary.post_processor(),
        "decoder": None,
        **make(vocabulary),
    }
    return _json({TOKENIZER: tokenizer, CONFIGURATION: _configuration(vocabulary)})


def generation_config(metadata: Metadata) -> Document:
    """generation_config.json: the special tokens, all tokens that end a generation, and the recommended sampling."""
    ids = {role: field.value for role, key in spec.SPECIAL_TOKENS.items() if (field := metadata.get(key)) is not None}
    ends = list(dict.fromkeys(ids[role] for role in ("eos", "eot", "eom") if role in ids))
    found: Document = {f"{role}_token_id": ids[role] for role in ("bos", "pad") if role in ids}
    if ends:
        found["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    sampling = generation_parameters(metadata)
    return found | ({"do_sample": True} | sampling if sampling else {})


class _Vocabulary:
    """The vocabulary in the metadata of a file."""

    def __init__(self, metadata: Metadata, path: Path) -> None:
        self.metadata = metadata
        self.path = path
        self.tokens: list[str] = list(metadata[spec.TOKENS].value)
        types = metadata.get(spec.TOKEN_TYPES)
        self.types = [TokenType.NORMAL] * len(self.tokens) if types is None else types.elements()
        if len(self.types) != len(self.tokens):
            raise FormatError(path, f"{len(self.tokens)} tokens and {len(self.types)} token types")

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata."""
        field = self.metadata.get(key)
        return default if field is None else field.value

    def special(self, role: str) -> str | None:
        """The text of a special token. The unknown token is also known by its type."""
        id_ = self.get(spec.SPECIAL_TOKENS[role])
        if id_ is None and role == "unk" and TokenType.UNKNOWN in self.types:
            id_ = self.types.index(TokenType.UNKNOWN)
        return self.tokens[id_] if isinstance(id_, int) and 0 <= id_ < len(self.tokens) else None

    def adds(self, role: str) -> bool:
        """Whether a token of this role is added to a text."""
        return bool(self.get(spec.ADD_SPECIAL_TOKENS[role], False)) and self.special(role) is not None

    def is_padding(self, id_: int) -> bool:
        """Whether a token only fills the embeddings up."""
        return self.types[id_] == TokenType.UNUSED and self.tokens[id_] == f"[PAD{id_}]"

    def ids(self) -> dict[str, int]:
        """Text -> id of all tokens that are in the tokenizer."""
        return {text: id_ for id_, text in enumerate(self.tokens) if not self.is_padding(id_)}

    def added(self) -> list[Document]:
        """The tokens that are matched in a text before it is split."""
        kinds = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        left = pre_tokenizers()[name].strip_left if (name := self.get(spec.PRE_TOKENIZER)) in pre_tokenizers() else ()
        return [
            {
                "id": id_, "content": text, "single_word": False, "lstrip": text in left, "rstrip": False,
                "normalized": False, "special": self.types[id_] != TokenType.USER_DEFINED,
            }
            for id_, text in enumerate(self.tokens)
            if self.types[id_] in kinds
        ]  # fmt: skip

    def post_processor(self) -> Document | None:
        """The tokens that are added to a text, or to two."""
        first = [self.special("bos")] if self.adds("bos") else []
        last = [self.special("eos" if self.adds("eos") else "sep")] if self.adds("eos") or self.adds("sep") else []
        if not first and not last:
            return None
        marks = {text: {"id": text, "ids": [self.tokens.index(text)], "tokens": [text]} for text in (*first, *last) if text}
        before, after = ([{"SpecialToken": {"id": text, "type_id": 0}} for text in texts] for texts in (first, last))
        second = [{"SpecialToken": {"id": text, "type_id": 1}} for text in last]
        single = [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after]
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}, *second]
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": marks}


def _byte_level(vocabulary: _Vocabulary) -> Document:
    name = vocabulary.get(spec.PRE_TOKENIZER, "default")
    known = pre_tokenizers().get(name)
    if known is None or known.patterns is None or known.plain:
        raise UnsupportedError(f"{vocabulary.path}: the pre-tokenizer {name!r} cannot be exported", hint=_HINT)
    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in known.patterns
    ]
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    if known.add_bos and spec.ADD_SPECIAL_TOKENS["bos"] not in vocabulary.metadata:
        vocabulary.metadata = {**vocabulary.metadata, spec.ADD_SPECIAL_TOKENS["bos"]: boolean(True)}
    return {
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": known.ignore_merges,
            "vocab": vocabulary.ids(), "merges": [text.split(" ", 1) for text in vocabulary.get(spec.MERGES, [])],
        },
        "normalizer": None if known.normalizer is None else {"type": known.normalizer.upper()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, bytes_]},
        "post_processor": vocabulary.post_processor(),
        "decoder": bytes_ | {"use_regex": True},
    }  # fmt: skip


def _sentencepiece(vocabulary: _Vocabulary) -> Document:
    prefix = [{"type": "Prepend", "prepend": WORD_START}] if vocabulary.get(spec.ADD_SPACE_PREFIX, True) else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    spaces = {"type": "Replace", "pattern": {"String": WORD_START}, "content": " "}
    ids = vocabulary.ids()
    return {
        "model": {
            "type": "BPE", "dropout": None, "unk_token": vocabulary.special("unk"), "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": ids, "merges": _merges(vocabulary, ids),
        },
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*prefix, {"type": "Replace", "pattern": {"String": " "}, "content": WORD_START}],
        },
        "decoder": {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
    }  # fmt: skip


def _merges(vocabulary: _Vocabulary, ids: Mapping[str, int]) -> list[list[str]]:
    """The merges of a SentencePiece BPE: every split of a piece into two, in the order of the pieces' scores."""
    scores = vocabulary.get(spec.SCORES)
    if scores is None:
        raise FormatError(vocabulary.path, "the vocabulary has no scores", hint=_HINT)
    mergeable = {text: id_ for text, id_ in ids.items() if vocabulary.types[id_] in (TokenType.NORMAL, TokenType.UNUSED)}
    found = [
        (-float(scores[id_]), ids[text[:place]], ids[text[place:]], text[:place], text[place:])
        for text, id_ in mergeable.items()
        for place in range(1, len(text))
        if text[:place] in mergeable and text[place:] in mergeable
    ]
    return [[left, right] for *_, left, right in sorted(found)]


def _word_piece(vocabulary: _Vocabulary) -> Document:
    texts = {}
    for text, id_ in vocabulary.ids().items():
        plain = vocabulary.types[id_] == TokenType.NORMAL
        own = text.removeprefix(WORD_START) if text.startswith(WORD_START) else f"##{text}"
        texts[own if plain else text] = id_
    lower = bool(vocabulary.get(spec.NORMALIZER_LOWERCASE, True))
    return {
        "model": {
            "type": "WordPiece", "unk_token": vocabulary.special("unk") or "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": texts,
        },
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": vocabulary.get(spec.NORMALIZER_STRIP_ACCENTS), "lowercase": lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    }  # fmt: skip


def _unigram(vocabulary: _Vocabulary) -> Document:
    scores = vocabulary.get(spec.SCORES)
    if scores is None:
        raise FormatError(vocabulary.path, "the vocabulary has no scores", hint=_HINT)
    listed = [[text, float(score)] for text, score in zip(vocabulary.tokens, scores, strict=True)]
    unknown = next((id_ for id_, type_ in enumerate(vocabulary.types) if type_ == TokenType.UNKNOWN), None)
    steps: list[Document] = []
    if (characters := vocabulary.get(spec.PRECOMPILED_CHARACTER_MAP)) is not None:
        steps.append({"type": "Precompiled", "precompiled_charsmap": b64encode(bytes(list(characters))).decode()})
    if vocabulary.get(spec.REMOVE_EXTRA_WHITESPACE, False):
        steps += [
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    scheme = "always" if vocabulary.get(spec.ADD_SPACE_PREFIX, True) else "never"
    spaces = {"type": "Metaspace", "replacement": WORD_START, "prepend_scheme": scheme, "split": True}
    return {
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": listed, "byte_fallback": False},
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": spaces,
        "decoder": spaces,
    }


_ALGORITHMS: Final[Mapping[str, Callable[[_Vocabulary], Document]]] = MappingProxyType(
    {"gpt2": _byte_level, "llama": _sentencepiece, "bert": _word_piece, "t5": _unigram}
)
"""Value of `tokenizer.ggml.model` -> the parts of tokenizer.json that depend on it."""


def _configuration(vocabulary: _Vocabulary) -> Document:
    """tokenizer_config.json."""
    named = {f"{role}_token": vocabulary.special(role) for role in ("bos", "eos", "unk", "sep", "pad", "mask")}
    found: Document = {name: text for name, text in named.items() if text is not None}
    if vocabulary.get(spec.MODEL) == "bert" and "bos_token" in found:
        found["cls_token"] = found["bos_token"]
    for role in ("bos", "eos"):
        if (flag := vocabulary.get(spec.ADD_SPECIAL_TOKENS[role])) is not None:
            found[f"add_{role}_token"] = flag
    if (template := _templates(vocabulary)) is not None:
        found["chat_template"] = template
    return {**found, "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}


def _templates(vocabulary: _Vocabulary) -> Any:
    """The chat template, or the list of named ones."""
    default = vocabulary.get(spec.CHAT_TEMPLATE)
    prefix = f"{spec.CHAT_TEMPLATE}."
    named = {key.removeprefix(prefix): field.value for key, field in vocabulary.metadata.items() if key.startswith(prefix)}
    if not named:
        return default
    all_ = ({} if default is None else {"default": default}) | named
    return [{"name": name, "template": text} for name, text in all_.items()]
