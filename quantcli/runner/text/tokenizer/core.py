"""The tokenizer: splits a text at its special tokens, encodes the rest with an algorithm, and adds BOS and EOS.

Source: `llama_vocab::impl::tokenize` and `tokenizer_st_partition` of llama.cpp's `llama-vocab.cpp`.
"""

from __future__ import annotations

import codecs
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain, islice
from typing import Final, Protocol

import numpy as np

from quantcli.architectures.pre_tokenizers import PreTokenizer, pre_tokenizers
from quantcli.core.errors import ModelError, UnsupportedError, shown, warn
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.spec import Metadata, ValueType, string
from quantcli.runner.text.tokenizer.character_map import CharacterMap
from quantcli.runner.text.tokenizer.sentencepiece import SentencePieceModel
from quantcli.runner.text.tokenizer.unigram import Normalizer, UnigramModel
from quantcli.runner.text.tokenizer.vocabulary import (
    BOOLEANS,
    HIDDEN,
    STRINGS,
    Attribute,
    Vocabulary,
    number_array,
    parsed_tokens,
    read_vocabulary,
    string_array,
    value,
)

_LONE_SURROGATE: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_BYTES: Final = frozenset({ValueType.UINT8, ValueType.INT8})

_START: Final = 4
"""By how many characters special tokens are sought together."""

_WHITE_SPACE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""The white space that tokens with lstrip or rstrip remove: Unicode's White_Space, as in Hugging Face's tokenizers.

llama.cpp removes ASCII white space only."""


DEFAULT_PRE_TOKENIZER: Final = "default"
"""The pre-tokenizer where the file names none."""


class Model(Protocol):
    """A tokenization algorithm with its vocabulary."""

    def encode(self, text: str) -> Iterator[int]:
        """The token ids of a text without special tokens, computed as they are asked for where the algorithm allows it."""
        ...

    def piece(self, id_: int) -> bytes:
        """The bytes of a token."""
        ...


@dataclass(frozen=True)
class Settings:
    """What is done besides the algorithm. Metadata override the algorithm's defaults."""

    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    """Add a space before a text, and before the text after a special token."""
    normalizes: bool = False
    """Whether the algorithm's normalizer adds the space prefix."""
    last: str = "eos"
    """The role of the token that `add_eos` appends."""
    always_bos: bool = False
    always_last: bool = False
    """Whether BOS and the last token are added regardless of the file's metadata."""
    between: bool = False
    """Whether SEP comes between two texts of a pair, after the last token of the first."""


@dataclass(frozen=True)
class _Algorithm:
    """The algorithm of a value of `tokenizer.ggml.model`, with its default settings and special tokens."""

    build: Callable[[Vocabulary, Metadata], Model]
    settings: Callable[[Metadata], Settings]
    special: Callable[[Metadata], Mapping[str, int]]
    """Default ids of special tokens, by role."""


def _sentencepiece(vocabulary: Vocabulary, metadata: Metadata) -> Model:
    return SentencePieceModel(vocabulary)


def _byte_level(vocabulary: Vocabulary, metadata: Metadata) -> Model:
    # Imported here because it takes a while, and half of all models do not need it.
    from quantcli.runner.text.tokenizer.byte_level import ByteLevelModel

    if spec.MERGES not in metadata:
        raise ModelError(f"the tokenizer is incomplete: no {spec.MERGES} in the file")
    if not value(metadata, spec.PRE_TOKENIZER, STRINGS):
        effect = "a text may become other tokens than the model was trained on"
        warn(f"the file names no pre-tokenizer ({spec.PRE_TOKENIZER}): {DEFAULT_PRE_TOKENIZER!r} is used, and {effect}")
    pre_tokenizer = _pre_tokenizer(metadata)
    for id_ in map(vocabulary.find, pre_tokenizer.strip_left):
        if id_ is not None:
            vocabulary.attributes[id_] |= Attribute.STRIP_LEFT
    return ByteLevelModel(vocabulary, string_array(metadata, spec.MERGES), pre_tokenizer)


def _word_piece(vocabulary: Vocabulary, metadata: Metadata) -> Model:
    from quantcli.runner.text.tokenizer.word_piece import WordPieceModel

    lowercase = _flag(metadata, spec.NORMALIZER_LOWERCASE, True)
    strip_accents = _flag(metadata, spec.NORMALIZER_STRIP_ACCENTS, lowercase)
    return WordPieceModel(vocabulary, lowercase=lowercase, strip_accents=strip_accents)


def _unigram(vocabulary: Vocabulary, metadata: Metadata) -> Model:
    data = number_array(metadata, spec.PRECOMPILED_CHARACTER_MAP, _BYTES).astype(np.uint8).tobytes()
    normalizer = Normalizer(
        CharacterMap(data) if data else None,
        _flag(metadata, spec.ADD_SPACE_PREFIX, False),
        _flag(metadata, spec.REMOVE_EXTRA_WHITESPACE, False),
    )
    return UnigramModel(vocabulary, normalizer)


def _byte_level_settings(metadata: Metadata) -> Settings:
    pre_tokenizer = _pre_tokenizer(metadata)
    return Settings(add_bos=pre_tokenizer.add_bos or pre_tokenizer.force_bos, always_bos=pre_tokenizer.force_bos)


def _byte_level_special(metadata: Metadata) -> Mapping[str, int]:
    # 11 is Falcon's <|endoftext|>: llama.cpp's default since Falcon was its only model with byte-level BPE.
    return {"eos": 11} if _pre_tokenizer(metadata).no_bos else {"bos": 11, "eos": 11}


def _pre_tokenizer(metadata: Metadata) -> PreTokenizer:
    name = value(metadata, spec.PRE_TOKENIZER, STRINGS) or DEFAULT_PRE_TOKENIZER
    known = pre_tokenizers()
    if name not in known:
        near = get_close_matches(name, known, 3)
        what = f"the pre-tokenizer {shown(name)} is unknown, to llama.cpp too"
        raise UnsupportedError(what + (f"; the nearest that are known: {', '.join(near)}" if near else ""))
    return known[name]


_GEMMA_4: Final = {spec.PRE_TOKENIZER: string("gemma4")}

_ALGORITHMS: Final = {
    "llama": _Algorithm(
        _sentencepiece,
        lambda metadata: Settings(add_bos=True, add_space_prefix=True),
        lambda metadata: {"bos": 1, "eos": 2, "unk": 0},
    ),
    "gpt2": _Algorithm(
        _byte_level,
        _byte_level_settings,
        _byte_level_special,
    ),
    "gemma4": _Algorithm(
        lambda vocabulary, metadata: _byte_level(vocabulary, metadata | _GEMMA_4),
        lambda metadata: _byte_level_settings(_GEMMA_4),
        lambda metadata: {},
    ),
    "bert": _Algorithm(
        _word_piece,
        lambda metadata: Settings(add_bos=True, add_eos=True, last="sep", always_bos=True, always_last=True),
        lambda metadata: {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
    ),
    "t5": _Algorithm(
        _unigram,
        lambda metadata: Settings(add_eos=True, normalizes=True),
        lambda metadata: {"eos": 1, "unk": 2, "pad": 0},
    ),
}


class Tokenizer:
    """Encodes and decodes with one vocabulary.

    `bos` and `eos` are ids, or None where the vocabulary has no such token. `end_of_generation` has every id that ends
    generation (EOG tokens).
    """

    def __init__(self, vocabulary: Vocabulary, model: Model, settings: Settings) -> None:
        self.vocabulary = vocabulary
        self.settings = settings
        self.bos = vocabulary.special.get("bos")
        self.eos = vocabulary.special.get("eos")
        self.end_of_generation = vocabulary.end_of_generation
        self.model = model
        self._parsed = parsed_tokens(vocabulary)
        self._starts: defaultdict[str, list[int]] = defaultdict(list)
        """The places in `_parsed` of the tokens that begin alike: one search of a text rules out all of them."""
        for place, id_ in enumerate(self._parsed):
            self._starts[vocabulary.texts[id_][:_START]].append(place)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(
        self,
        text: str,
        add_special: bool = True,
        parse_special: bool = False,
        *,
        once: bool = False,
        limit: int | None = None,
    ) -> list[int]:
        """The token ids of a text.

        With `add_special`, BOS and EOS are added where the vocabulary's flags say so. With `parse_special`, strings of
        control tokens, such as `<|eot_id|>`, become these tokens instead of being encoded as text.

        A text that begins with BOS or ends with EOS gets a second one, as in llama.cpp, and a `QuantcliWarning`. With
        `once` it does not.

        With `limit` they are only the first ones, at most that many. Most algorithms do not read the rest of the text then.

        A lone surrogate is replaced by U+FFFD, except those that Python's surrogateescape uses for bytes that are not
        UTF-8. SentencePiece BPE has byte tokens for these. The other algorithms replace them by U+FFFD.
        """
        ids = list(islice(chain.from_iterable(self._encode(_LONE_SURROGATE.sub("\ufffd", text), parse_special)), limit))
        return self._around(ids, once=once)[:limit] if add_special else ids

    def _encode(self, text: str, parse_special: bool) -> Iterator[Iterable[int]]:
        prefixed = self.settings.add_space_prefix and not self.settings.normalizes
        after_special = True
        for fragment in self._fragments(text, parse_special):
            if isinstance(fragment, int):
                yield (fragment,)
            else:
                prefix = " " if after_special and prefixed else ""
                yield self.model.encode(prefix + fragment)
            after_special = isinstance(fragment, int)

    def _around(self, ids: list[int], *, once: bool) -> list[int]:
        """The ids of a text with BOS and EOS added where the settings say so."""
        first, last = self._added
        begin = [] if first is None or (once and ids[:1] == [first]) else [first]
        end = [] if last is None or (once and ids[-1:] == [last]) else [last]
        for added, there, role in ((begin, ids[:1], "begin"), (end, ids[-1:], "end")):
            if added and added == there:
                token = shown(self.vocabulary.texts[added[0]])
                warn(f"the text has the {role} token {token} already, and the tokenizer adds another: the prompt has two")
        return [*begin, *ids, *end]

    @property
    def _added(self) -> tuple[int | None, int | None]:
        """The tokens that encoding a text adds at its begin and its end, where the settings say so."""
        settings = self.settings
        return (
            self.bos if settings.add_bos else None,
            self.vocabulary.special.get(settings.last) if settings.add_eos else None,
        )

    def pair(self, first: Sequence[int], second: Sequence[int]) -> list[int]:
        """Two texts as one sequence, as a reranker reads a query and a document: BOS, and each with what ends a text.

        Args:
            first, second: token ids of both texts, without added ones.
        """
        begin, last = self._added
        end = [] if last is None else [last]
        between = [self.vocabulary.special["sep"]] if self.settings.between and "sep" in self.vocabulary.special else []
        return [*([] if begin is None else [begin]), *first, *end, *between, *second, *end]

    def piece(self, id_: int) -> bytes:
        """The bytes of one token, which may be part of a UTF-8 character. For a control token, its string."""
        return self.model.piece(self._checked(id_))

    def is_hidden(self, id_: int) -> bool:
        """Whether a token is a control or unknown token, and so not part of decoded text."""
        return bool(self.vocabulary.attributes[self._checked(id_)] & HIDDEN)

    def _checked(self, id_: int) -> int:
        if not 0 <= id_ < len(self):
            raise ModelError(f"token {id_} is outside the vocabulary of {len(self)}")
        return id_

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of token ids, the inverse of `encode`. Control tokens are left out unless `special`.

        Bytes that are not UTF-8 become U+FFFD. For streams, use `StreamDecoder`.
        """
        data = b"".join(self.piece(id_) for id_ in ids if special or not self.is_hidden(id_))
        if self.settings.add_space_prefix:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def _fragments(self, text: str, parse_special: bool) -> list[str | int]:
        """Split `text` at its special tokens. Longer tokens are matched first."""
        fragments: list[str | int] = [text] if text else []
        places = sorted(place for start, places in self._starts.items() if start in text for place in places)
        for id_ in (self._parsed[place] for place in places):
            token, attribute = self.vocabulary.texts[id_], self.vocabulary.attributes[id_]
            if (parse_special or not attribute & HIDDEN) and token in text:
                fragments = [part for fragment in fragments for part in _cut(fragment, token, id_, attribute)]
        return fragments


def _cut(fragment: str | int, token: str, id_: int, attribute: int) -> list[str | int]:
    if isinstance(fragment, int):
        return [fragment]
    texts = fragment.split(token)
    parts: list[str | int] = []
    for index, text in enumerate(texts):
        kept = text
        if index > 0:
            parts.append(id_)
            kept = kept.lstrip(_WHITE_SPACE) if attribute & Attribute.STRIP_RIGHT else kept
        if index < len(texts) - 1:
            kept = kept.rstrip(_WHITE_SPACE) if attribute & Attribute.STRIP_LEFT else kept
        if kept:
            parts.append(kept)
    return parts


class StreamDecoder:
    """Decodes token by token. A character that spans several tokens is returned with its last byte."""

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id_: int) -> str:
        """The text that `id_` completes. Control tokens give none unless `special`."""
        if not self._special and self._tokenizer.is_hidden(id_):
            return ""
        return self._decoder.decode(self._tokenizer.piece(id_))

    def finish(self) -> str:
        """The replacement for an incomplete character at the end, if any."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(metadata: Metadata) -> Tokenizer:
    """The tokenizer that GGUF metadata describes.

    Raises:
        ModelError: if there is none, or it is incomplete.
        UnsupportedError: if its algorithm is unknown.
    """
    name = value(metadata, spec.MODEL, STRINGS)
    if name is None:
        raise ModelError(f"the file has no tokenizer: no {spec.MODEL}")
    algorithm = _ALGORITHMS.get(name)
    if algorithm is None:
        raise UnsupportedError(f"the tokenizer {shown(name)} is unknown, expected one of {', '.join(_ALGORITHMS)}")
    vocabulary = read_vocabulary(metadata, algorithm.special(metadata))
    model = algorithm.build(vocabulary, metadata)
    return Tokenizer(vocabulary, model, _override(algorithm.settings(metadata), metadata))


def _override(defaults: Settings, metadata: Metadata) -> Settings:
    return replace(
        defaults,
        add_bos=_flag(metadata, spec.ADD_SPECIAL_TOKENS["bos"], defaults.add_bos) or defaults.always_bos,
        add_eos=_flag(metadata, spec.ADD_SPECIAL_TOKENS[defaults.last], defaults.add_eos) or defaults.always_last,
        add_space_prefix=_flag(metadata, spec.ADD_SPACE_PREFIX, defaults.add_space_prefix),
        between=defaults.last != "sep" and _flag(metadata, spec.ADD_SPECIAL_TOKENS["sep"], False),
    )


def _flag(metadata: Metadata, key: str, default: bool) -> bool:
    given = value(metadata, key, BOOLEANS)
    return default if given is None else bool(given)
