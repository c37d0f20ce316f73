"""The vocabulary of a GGUF file: token strings, scores, types (attributes), and special tokens.

Files often give special tokens the wrong type, so some are recognised by their string, as in `llama_vocab::impl::load` of
llama.cpp's `llama-vocab.cpp`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Final

from quantcli.core.errors import ModelError
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.spec import Metadata, ValueType
from quantcli.formats.gguf.vocabulary import TokenType


class Attribute(IntFlag):
    """Token attributes. A token whose type was corrected can have several."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 4
    USER_DEFINED = 8
    UNUSED = 16
    BYTE = 32
    STRIP_LEFT = 64
    STRIP_RIGHT = 128


HIDDEN: Final = Attribute.CONTROL | Attribute.UNKNOWN
"""Tokens that are left out of decoded text, and matched in text only with `parse_special`."""

INFILL_TEXTS: Final = {
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Strings of fill-in-the-middle (FIM) tokens, by role."""

INFILL_ENDS: Final = ("fim_pad", "fim_rep", "fim_sep")
"""The FIM tokens that end generation."""

ALWAYS_SHOWN_TEXTS: Final = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
"""Tokens of the harmony format. They are always decoded, because parsers of the format need them."""


@dataclass(frozen=True)
class Vocabulary:
    """The strings, scores and attributes of tokens by id, and the ids of strings.

    `special` maps roles of special tokens (`bos`, `eos`, `eot`, `unk`, `sep`, `fim_pre`, ...) to ids. `end_of_generation`
    has the ids of EOG tokens.
    """

    texts: list[str]
    scores: list[float]
    attributes: list[Attribute]
    ids: dict[str, int]
    special: dict[str, int]
    end_of_generation: frozenset[int]

    def __len__(self) -> int:
        return len(self.texts)


_STRAY_BYTE: Final = re.compile("[\udc80-\udcff]")


def is_text(token: str) -> bool:
    """Whether a token is valid UTF-8. Algorithms over characters never meet the others in a text."""
    return _STRAY_BYTE.search(token) is None


def without_stray_bytes(text: str) -> str:
    """`text` with U+FFFD for each byte that is not UTF-8 (a lone surrogate, by surrogateescape)."""
    return _STRAY_BYTE.sub("\ufffd", text)


def read_vocabulary(metadata: Metadata, default_special: Mapping[str, int]) -> Vocabulary:
    """The vocabulary in GGUF metadata. `default_special` has the ids of special tokens that the file does not set.

    Raises:
        ModelError: if there are no tokens, fewer scores or types than tokens, or a score that is not a float32.
    """
    texts = [text or f"[EMPTY_{id_}]" for id_, text in enumerate(array_value(metadata, spec.TOKENS, STRINGS))]
    if not texts:
        raise ModelError(f"the vocabulary is missing: no {spec.TOKENS} in the file")
    scores = _scores(metadata, len(texts))
    types = _per_token(metadata, spec.TOKEN_TYPES, INTEGERS, len(texts)) or [TokenType.NORMAL] * len(texts)
    attributes = [_ATTRIBUTES.get(int(type_), Attribute.UNDEFINED) for type_ in types]
    ids = {text: id_ for id_, text in enumerate(texts)}

    special = _special_ids(metadata, default_special, ids, attributes)
    ends = _end_of_generation(special, ids, texts, attributes)
    _strip_around(metadata, ids, attributes)
    return Vocabulary(texts, scores, attributes, ids, special, ends)


_LARGEST_SCORE: Final = (2 - 2**-23) * 2.0**127

_ATTRIBUTES: Final = {type_.value: Attribute[type_.name] for type_ in TokenType}


STRINGS: Final = frozenset({ValueType.STRING})
BOOLEANS: Final = frozenset({ValueType.BOOL})
INTEGERS: Final = frozenset(type_ for type_ in ValueType if type_.name.lstrip("U").startswith("INT"))
NUMBERS: Final = INTEGERS | {ValueType.FLOAT32, ValueType.FLOAT64}


def value(metadata: Metadata, key: str, types: Set[ValueType]) -> Any:
    """The value at `key`, or None.

    Raises:
        ModelError: if it has another type.
    """
    field = metadata.get(key)
    if field is not None and field.type not in types:
        raise ModelError(f"{key} is of type {field.type.name}, expected {_named(types)}")
    return None if field is None else field.value


def array_value(metadata: Metadata, key: str, types: Set[ValueType]) -> list[Any]:
    """The values of the array at `key`; an empty list where there is no such key.

    Raises:
        ModelError: if it is not an array, or has another element type.
    """
    values = value(metadata, key, {ValueType.ARRAY})
    element = metadata[key].element if key in metadata else None
    if element is not None and element not in types:
        raise ModelError(f"{key} is an array of {element.name}, expected {_named(types)}")
    return [] if values is None else list(values)


def _named(types: Set[ValueType]) -> str:
    return " or ".join(type_.name for type_ in sorted(types))


def _scores(metadata: Metadata, count: int) -> list[float]:
    scores = [float(score) for score in _per_token(metadata, spec.SCORES, NUMBERS, count)]
    for id_, score in enumerate(scores):
        if math.isnan(score) or _LARGEST_SCORE < abs(score) < math.inf:
            raise ModelError(f"{spec.SCORES}: the score of token {id_} is {score}, expected a 32-bit float")
    return scores or [0.0] * count


def _per_token(metadata: Metadata, key: str, types: Set[ValueType], count: int) -> list[Any]:
    """The first `count` values of an array. llama.cpp ignores surplus values, too."""
    values = array_value(metadata, key, types)
    if key in metadata and len(values) < count:
        raise ModelError(f"{key} has {len(values)} values, expected one for each of {count} tokens")
    return values[:count]


def _special_ids(
    metadata: Metadata, defaults: Mapping[str, int], ids: Mapping[str, int], attributes: list[Attribute]
) -> dict[str, int]:
    count = len(attributes)
    special = {role: id_ for role, id_ in defaults.items() if id_ < count}
    for key, role in _ROLE_KEYS.items():
        id_ = value(metadata, key, INTEGERS)
        if id_ is not None and 0 <= id_ < count:
            special[role] = id_
    texts = {"eot": spec.END_OF_TURN_TEXTS, "eom": spec.END_OF_MESSAGE_TEXTS, **INFILL_TEXTS}
    for role, candidates in texts.items():
        found = next((ids[text] for text in candidates if text in ids), None)
        if role not in special and found is not None:
            special[role] = found
            attributes[found] |= Attribute.CONTROL
    return special


_ROLE_KEYS: Final = (
    {key: role for role, key in spec.SPECIAL_TOKENS.items()}
    | {f"tokenizer.ggml.{role}_token_id": role for role in INFILL_TEXTS}
    | {  # keys in older files
        "tokenizer.ggml.prefix_token_id": "fim_pre",
        "tokenizer.ggml.suffix_token_id": "fim_suf",
        "tokenizer.ggml.middle_token_id": "fim_mid",
    }
)


def _end_of_generation(
    special: Mapping[str, int], ids: Mapping[str, int], texts: list[str], attributes: list[Attribute]
) -> frozenset[int]:
    ends = {special[role] for role in INFILL_ENDS if role in special}
    for text in spec.END_OF_GENERATION_TEXTS & ids.keys():
        ends.add(ids[text])
        attributes[ids[text]] |= Attribute.CONTROL
    for text in ALWAYS_SHOWN_TEXTS:
        if text in ids:
            attributes[ids[text]] = Attribute.USER_DEFINED
    ends |= {special[role] for role in ("eos", "eot", "eom") if role in special}

    ending = {texts[id_] for id_ in ends}
    # <|end|> and </s> do not end generation in formats that have other tokens for that.
    if "<|end|>" in ending and ({"<|return|>", "<|flush|>"} & ending) and ({"<|call|>", "<|calls|>"} & ending):
        ends.discard(ids["<|end|>"])
        attributes[ids["<|end|>"]] = Attribute.USER_DEFINED
    if "</s>" in ending and {"<|tool_response>", "<|plamo:eos|>"} & ending:
        ends.discard(ids["</s>"])
        attributes[ids["</s>"]] = Attribute.NORMAL
    return frozenset(ends)


def _strip_around(metadata: Metadata, ids: Mapping[str, int], attributes: list[Attribute]) -> None:
    """Set STRIP_RIGHT (rstrip) on most special tokens of Phi-3. GGUF has no key for it, so the model's name decides."""
    name = str(value(metadata, "general.name", STRINGS) or "").lower()
    if any(part in name for part in ("phi-3", "phi3")):
        kept = {ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
        for id_ in _parsed(attributes):
            if id_ not in kept:
                attributes[id_] |= Attribute.STRIP_RIGHT


def _parsed(attributes: list[Attribute]) -> list[int]:
    """The ids of special tokens: those that are matched in a text before the algorithm runs."""
    parsed = {attribute for attribute in set(attributes) if attribute & (HIDDEN | Attribute.USER_DEFINED)}
    return [id_ for id_, attribute in enumerate(attributes) if attribute in parsed]


def parsed_tokens(vocabulary: Vocabulary) -> list[int]:
    """The ids of special tokens, in the order in which they are matched in a text: longest first."""
    return sorted(
        _parsed(vocabulary.attributes), key=lambda id_: -len(vocabulary.texts[id_].encode("utf-8", "surrogateescape"))
    )
