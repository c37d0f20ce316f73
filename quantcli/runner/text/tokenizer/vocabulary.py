"""The vocabulary of a GGUF file: token strings, scores, types (attributes), and special tokens.

Files often give special tokens the wrong type, so some are recognised by their string, as in `llama_vocab::impl::load` of
llama.cpp's `llama-vocab.cpp`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import ModelError
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.arrays import PackedStrings, pack_strings
from quantcli.formats.gguf.spec import Metadata, ValueType
from quantcli.formats.gguf.vocabulary import TokenType
from quantcli.runner.text.tokenizer.strings import lengths, positions


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


MOST_TOKENS: Final = 1_500_000
"""An upper bound on tokens, each of which takes some 100 bytes of memory. The most in a known vocabulary are 901,629."""


@dataclass(frozen=True)
class Vocabulary:
    """The strings, scores (float64 `(tokens,)`) and attributes (a byte each) of tokens by id.

    `find` tells the id of a string, or None; of tokens with the same string, the last. `special` maps roles of special
    tokens (`bos`, `eos`, `eot`, `unk`, `sep`, `fim_pre`, ...) to ids. `end_of_generation` has the ids of EOG tokens.
    """

    texts: PackedStrings
    scores: NDArray[np.float64]
    attributes: bytearray
    find: Callable[[str], int | None]
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
        ModelError: if there are no tokens or more than `MOST_TOKENS`, fewer scores or types than tokens, or a score that is
            not a float32.
    """
    texts = string_array(metadata, spec.TOKENS)
    if not len(texts):
        raise ModelError(f"the vocabulary is missing: no {spec.TOKENS} in the file")
    if len(texts) > MOST_TOKENS:
        raise ModelError(f"{spec.TOKENS} has {len(texts)} tokens, at most {MOST_TOKENS} are supported")
    if not lengths(texts).all():
        texts = pack_strings(texts[id_] or f"[EMPTY_{id_}]" for id_ in range(len(texts)))
    scores = _scores(metadata, len(texts))
    types = _per_token(metadata, spec.TOKEN_TYPES, INTEGERS, len(texts), TokenType.NORMAL)
    attributes = bytearray(_ATTRIBUTES[np.clip(types, 0, len(_ATTRIBUTES) - 1).astype(np.intp)].tobytes())

    find = positions(texts, last=True)
    special = _special_ids(metadata, default_special, find, attributes)
    ends = _end_of_generation(special, find, texts, attributes)
    _strip_around(metadata, find, attributes)
    return Vocabulary(texts, scores, attributes, find, special, ends)


_LARGEST_SCORE: Final = (2 - 2**-23) * 2.0**127

_ATTRIBUTES: Final = np.array(
    [Attribute.UNDEFINED, *(Attribute[type_.name] for type_ in sorted(TokenType)), Attribute.UNDEFINED], np.uint8
)
"""The attribute of each token type. Numbers outside of the types are clipped to the ends."""


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


def string_array(metadata: Metadata, key: str) -> PackedStrings:
    """The strings of the array at `key`; none where there is no such key.

    Raises:
        ModelError: if it is not an array of strings.
    """
    _check_elements(metadata, key, STRINGS)
    content = metadata[key].content if key in metadata else ()
    return content if isinstance(content, PackedStrings) else pack_strings(content)


def number_array(metadata: Metadata, key: str, types: Set[ValueType]) -> NDArray[Any]:
    """The numbers of the array at `key`; none where there is no such key.

    Raises:
        ModelError: if it is not an array, or has another element type.
    """
    _check_elements(metadata, key, types)
    return np.asarray(metadata[key].value if key in metadata else ())


def _check_elements(metadata: Metadata, key: str, types: Set[ValueType]) -> None:
    field = metadata.get(key)
    if field is None:
        return
    if field.type != ValueType.ARRAY:
        raise ModelError(f"{key} is of type {field.type.name}, expected {ValueType.ARRAY.name}")
    if field.element is not None and field.element not in types:
        raise ModelError(f"{key} is an array of {field.element.name}, expected {_named(types)}")


def _named(types: Set[ValueType]) -> str:
    return " or ".join(type_.name for type_ in sorted(types))


def _scores(metadata: Metadata, count: int) -> NDArray[np.float64]:
    scores = _per_token(metadata, spec.SCORES, NUMBERS, count, 0.0).astype(np.float64)
    wrong = np.isnan(scores) | ((np.abs(scores) > _LARGEST_SCORE) & np.isfinite(scores))
    if wrong.any():
        id_ = int(wrong.argmax())
        raise ModelError(f"{spec.SCORES}: the score of token {id_} is {scores[id_]}, expected a 32-bit float")
    return scores


def _per_token(metadata: Metadata, key: str, types: Set[ValueType], count: int, default: float) -> NDArray[Any]:
    """The first `count` values of an array, or `default` for each token. llama.cpp ignores surplus values, too."""
    values = number_array(metadata, key, types)
    if key not in metadata:
        return np.full(count, default)
    if len(values) < count:
        raise ModelError(f"{key} has {len(values)} values, expected one for each of {count} tokens")
    return values[:count]


def _special_ids(
    metadata: Metadata, defaults: Mapping[str, int], find: Callable[[str], int | None], attributes: bytearray
) -> dict[str, int]:
    count = len(attributes)
    special = {role: id_ for role, id_ in defaults.items() if id_ < count}
    for key, role in _ROLE_KEYS.items():
        id_ = value(metadata, key, INTEGERS)
        if id_ is not None and 0 <= id_ < count:
            special[role] = id_
    texts = {"eot": spec.END_OF_TURN_TEXTS, "eom": spec.END_OF_MESSAGE_TEXTS, **INFILL_TEXTS}
    for role, candidates in texts.items():
        found = next((id_ for id_ in map(find, candidates) if id_ is not None), None)
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
    special: Mapping[str, int], find: Callable[[str], int | None], texts: PackedStrings, attributes: bytearray
) -> frozenset[int]:
    ends = {special[role] for role in INFILL_ENDS if role in special}
    for id_ in map(find, spec.END_OF_GENERATION_TEXTS):
        if id_ is not None:
            ends.add(id_)
            attributes[id_] |= Attribute.CONTROL
    for id_ in map(find, ALWAYS_SHOWN_TEXTS):
        if id_ is not None:
            attributes[id_] = Attribute.USER_DEFINED
    ends |= {special[role] for role in ("eos", "eot", "eom") if role in special}

    ending = {texts[id_] for id_ in ends}
    # <|end|> and </s> do not end generation in formats that have other tokens for that.
    other = {}
    if {"<|return|>", "<|flush|>"} & ending and {"<|call|>", "<|calls|>"} & ending:
        other["<|end|>"] = Attribute.USER_DEFINED
    if {"<|tool_response>", "<|plamo:eos|>"} & ending:
        other["</s>"] = Attribute.NORMAL
    for text in other.keys() & ending:
        id_ = find(text)
        assert id_ is not None  # it is the text of a token
        ends.discard(id_)
        attributes[id_] = other[text]
    return frozenset(ends)


def _strip_around(metadata: Metadata, find: Callable[[str], int | None], attributes: bytearray) -> None:
    """Set STRIP_RIGHT (rstrip) on most special tokens of Phi-3. GGUF has no key for it, so the model's name decides."""
    name = str(value(metadata, "general.name", STRINGS) or "").lower()
    if any(part in name for part in ("phi-3", "phi3")):
        kept = {find(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
        for id_ in _parsed(attributes):
            if id_ not in kept:
                attributes[id_] |= Attribute.STRIP_RIGHT


def _parsed(attributes: bytearray) -> list[int]:
    """The ids of special tokens: those that are matched in a text before the algorithm runs."""
    found: list[int] = np.flatnonzero(np.frombuffer(attributes, np.uint8) & int(HIDDEN | Attribute.USER_DEFINED)).tolist()
    return found


def parsed_tokens(vocabulary: Vocabulary) -> list[int]:
    """The ids of special tokens, in the order in which they are matched in a text: longest first."""
    sizes = lengths(vocabulary.texts)
    return sorted(_parsed(vocabulary.attributes), key=lambda id_: -sizes[id_])
