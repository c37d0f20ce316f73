"""Which tokenizers need no limit on time and memory: those whose steps are known to lengthen a text little.

A tokenizer.json is a program: a list of normalizers doubles a text as often as it is long, and a regular expression may
backtrack without end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import inf, prod
from types import MappingProxyType
from typing import Any, Final

from quantcli.architectures import pre_tokenizers
from quantcli.conversion.vocabulary.files import TokenizerFiles

_MOST_GROWTH: Final = 256.0
"""How many times longer all steps together may make a text."""

_MOST_STEPS: Final = 64
_MOST_ADDED: Final = 16
"""The most tokens that a post-processor may add."""

_PARTS: Final = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_LISTS: Final = ("normalizers", "pretokenizers", "processors", "decoders")

Step = Mapping[str, Any]


def runs_steps(files: TokenizerFiles) -> bool:
    """Whether conversion runs the steps of tokenizer.json. Vocabularies with scores are only read."""
    return files.tokenizer_path is not None and files.sentencepiece is None and files.model.get("type") != "Unigram"


def is_bounded(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the steps of a tokenizer.json lengthen a text at most `_MOST_GROWTH` times, and use known patterns only."""
    try:
        steps = [step for part in _PARTS for step in _flat(tokenizer.get(part))]
        return len(steps) <= _MOST_STEPS and prod(map(_growth, steps)) <= _MOST_GROWTH
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError):
        return False  # of another shape than such files have


def _flat(step: Step | None) -> Iterator[Step]:
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
        return
    for inner in step[next(name for name in _LISTS if name in step)]:
        yield from _flat(inner)


def _growth(step: Step) -> float:
    """How many times longer a step makes a text, at most."""
    found = _GROWTHS.get(step["type"], inf)
    return found(step) if callable(found) else found


def _replace(step: Step) -> float:
    pattern, content = step["pattern"], step["content"]
    if set(pattern) != {"String"} or not pattern["String"]:
        return inf
    return max(1.0, len(content) / len(pattern["String"]))


def _prepend(step: Step) -> float:
    return 1.0 + len(step["prepend"])


def _split(step: Step) -> float:
    pattern = step["pattern"]
    known = set(pattern) == {"String"} or set(pre_tokenizers.patterns_of(step)) <= pre_tokenizers.known_patterns()
    return 1.0 if known else inf


def _template(step: Step) -> float:
    items = [*step["single"], *step["pair"]]
    tokens = step["special_tokens"].values()
    added = len(items) * max((len(token["ids"]) for token in tokens), default=0)
    return inf if added > _MOST_ADDED else max(1.0, sum("Sequence" in item for item in step["single"]))


_GROWTHS: Final[Mapping[str, float | Callable[[Step], float]]] = MappingProxyType(
    {
        # What one character becomes at most, by Unicode: U+0390 three, U+FDFA eighteen, U+0130 two.
        "NFC": 3.0, "NFD": 4.0, "NFKC": 18.0, "NFKD": 18.0, "Lowercase": 2.0, "StripAccents": 1.0, "Strip": 1.0, "Nmt": 1.0,
        "BertNormalizer": 12.0, "Replace": _replace, "Prepend": _prepend,
        # As a byte-level step spells them, bytes are characters of two bytes.
        "ByteLevel": 2.0, "Metaspace": 3.0, "Split": _split, "Digits": 1.0, "Punctuation": 1.0, "Whitespace": 1.0,
        "WhitespaceSplit": 1.0, "BertPreTokenizer": 1.0, "CharDelimiterSplit": 1.0, "UnicodeScripts": 1.0,
        "BertProcessing": 1.0, "RobertaProcessing": 1.0, "TemplateProcessing": _template,
        "ByteFallback": 1.0, "Fuse": 1.0, "WordPiece": 1.0, "BPEDecoder": 1.0, "CTC": 1.0,
    }
)  # fmt: skip
"""Type of a step -> its growth. A step of another type has no known bound."""
