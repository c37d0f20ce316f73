"""Pre-tokenizers of byte-level BPE: how each splits a text, and how to identify that of a tokenizer.

The data are in `pre_tokenizers.toml`. The converter writes the name of a pre-tokenizer, and the tokenizer reads it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

TEST_TEXT: Final = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫\ufe0f (multiple emojis concatenated"
    ") ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作131415"
    "1天～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he'"
    "s there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
"""A text on which pre-tokenizers differ. Its token ids identify a tokenizer's vocabulary and pre-tokenizer.

The text and the hashes in the table are from llama.cpp's converter (chktxt, chkhsh)."""

BYTE_LEVEL_PATTERN: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The regular expression of Hugging Face's `ByteLevel`, from GPT-2."""

BETWEEN_WORDS: Final = r"(?<=[A-Za-z])(?=[ \n])"
"""Where most pre-tokenizers always split, without a look at the other side."""


@dataclass(frozen=True)
class PreTokenizer:
    """The pre-tokenizer of a value of `tokenizer.ggml.pre`. The fields are explained in `pre_tokenizers.toml`."""

    name: str
    split: str | None = None
    ignore_merges: bool = False
    add_bos: bool = False
    force_bos: bool = False
    no_bos: bool = False
    normalizer: str | None = None
    strip_left: tuple[str, ...] = ()
    plain: bool = False

    @property
    def cut(self) -> str | None:
        """A regular expression for where a text can be cut without changing how it is split; None if that is unknown."""
        return None if self.split is None else _table().cuts.get(self.split, BETWEEN_WORDS)

    @property
    def patterns(self) -> tuple[str, ...] | None:
        """The regular expressions it splits by, or None if they are unknown."""
        return None if self.split is None else _table().splits[self.split][0]


@dataclass(frozen=True)
class _Table:
    splits: Mapping[str, list[tuple[str, ...]]]
    """Name -> equivalent lists of patterns, of which the first is used."""

    cuts: Mapping[str, str]
    pre_tokenizers: Mapping[str, PreTokenizer]
    hashes: Mapping[str, str]


@cache
def _table() -> _Table:
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    return _Table(
        {name: [tuple(row["patterns"]), *map(tuple, row.get("also", []))] for name, row in tables["splits"].items()},
        {name: row["cut"] for name, row in tables["splits"].items() if "cut" in row},
        {
            name: PreTokenizer(name, **{**row, "strip_left": tuple(row.get("strip_left", ()))})
            for name, row in tables["pre_tokenizers"].items()
        },
        tables["hashes"],
    )


def pre_tokenizers() -> Mapping[str, PreTokenizer]:
    """Every known pre-tokenizer by name."""
    return _table().pre_tokenizers


def splits() -> Mapping[str, tuple[str, ...]]:
    """The patterns of every split, by name."""
    return {name: lists[0] for name, lists in _table().splits.items()}


def known_patterns() -> frozenset[str]:
    """The patterns of every split, in all their spellings, and those that steps without a pattern stand for."""
    listed = (pattern for lists in _table().splits.values() for patterns in lists for pattern in patterns)
    return frozenset([BYTE_LEVEL_PATTERN, *listed])


def name_by_hash(ids: Sequence[int]) -> str | None:
    """The name of a tokenizer's pre-tokenizer, from its token ids of `TEST_TEXT`."""
    return _table().hashes.get(sha256(str(list(ids)).encode()).hexdigest())


def name_by_patterns(patterns: Sequence[str], *, ignore_merges: bool, normalizer: str | None = None) -> str | None:
    """The name of a pre-tokenizer that splits by `patterns`, preferably one with this normalizer."""
    table = _table()
    splits = {name for name, lists in table.splits.items() if tuple(patterns) in lists}
    rows = table.pre_tokenizers.values()
    fitting = [row for row in rows if row.split in splits and row.ignore_merges == ignore_merges and not row.plain]
    return next((row.name for row in sorted(fitting, key=lambda row: row.normalizer != normalizer)), None)


def nearest_name(patterns: Sequence[str]) -> str:
    """The name of the pre-tokenizer with the most similar patterns."""
    written = "\n".join(patterns)

    def likeness(row: PreTokenizer) -> float:
        return SequenceMatcher(None, written, "\n".join(row.patterns or ()), autojunk=False).ratio()

    return max(pre_tokenizers().values(), key=likeness).name


def patterns_of(pre_tokenizer: Mapping[str, Any] | None) -> list[str]:
    """The regular expressions of a `pre_tokenizer` in tokenizer.json. Steps without one appear as `<name>`."""
    return [pattern for step in _steps(pre_tokenizer) for pattern in _PATTERNS.get(step["type"], _unknown)(step)]


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> Iterable[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return
    if pre_tokenizer.get("type") != "Sequence":
        yield pre_tokenizer
        return
    for step in pre_tokenizer["pretokenizers"]:
        yield from _steps(step)


def _byte_level(step: Mapping[str, Any]) -> list[str]:
    return [BYTE_LEVEL_PATTERN] if step.get("use_regex", True) else []


def _digits(step: Mapping[str, Any]) -> list[str]:
    return [r"\p{N}" if step.get("individual_digits") else r"\p{N}+"]


def _punctuation(step: Mapping[str, Any]) -> list[str]:
    one = r"[\p{P}\$\+<=>\^~\|`]"
    return [one + "+" if step.get("behavior") == "Contiguous" else one]


def _split(step: Mapping[str, Any]) -> list[str]:
    pattern = step["pattern"]
    isolated = step.get("behavior") == "Isolated" or (step.get("behavior") == "Removed" and step.get("invert"))
    if "Regex" not in pattern or not isolated:
        return _unknown(step)
    return [pattern["Regex"].replace("\r", r"\r").replace("\n", r"\n").replace("\t", r"\t")]


def _unknown(step: Mapping[str, Any]) -> list[str]:
    return [f"<{step['type']}>"]


_PATTERNS: Final = {"ByteLevel": _byte_level, "Digits": _digits, "Punctuation": _punctuation, "Split": _split}
