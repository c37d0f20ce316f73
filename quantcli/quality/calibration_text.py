"""The built-in calibration text: many domains, languages and scripts, mixed so that every beginning has all of them.

The files are in `texts/calibration`; the README.md there describes them. A file is named `DOMAIN-SUBJECT.txt`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, TypeVar

CALIBRATION: Final = "quantcli-calibration-1"
"""The name of the text, which importance matrices record. The number changes with every change of the text."""

DIRECTORY: Final = Path(__file__).parent / "texts" / "calibration"

_PASSAGE_BYTES: Final = 1100
"""A passage ends with the paragraph that reaches this size in UTF-8."""

_SHORTEST_BYTES: Final = 500
"""What is left of a file is a passage of its own from this size. A shorter rest joins the passage before it."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class CalibrationText:
    """A text in passages, each with the name of its file."""

    name: str
    passages: tuple[tuple[str, str], ...]

    @cached_property
    def text(self) -> str:
        """The passages with empty lines between them."""
        return "\n\n".join(passage for _, passage in self.passages)

    @property
    def digest(self) -> str:
        """The SHA-256 of the text, in hexadecimal digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def calibration_text() -> CalibrationText:
    """The built-in calibration text."""
    files = {path.name: path.read_text(encoding="utf-8") for path in sorted(DIRECTORY.glob("*.txt"))}
    return CalibrationText(CALIBRATION, tuple(mixed(files)))


def mixed(files: Mapping[str, str]) -> list[tuple[str, str]]:
    """The passages of files, each with its file's name: first one of every domain, then in proportion to their sizes."""
    domains: dict[str, list[list[tuple[str, str]]]] = {}
    for name, text in files.items():
        domains.setdefault(domain_of(name), []).append([(name, passage) for passage in passages(text)])
    return interleaved([interleaved(own) for own in domains.values()])


def domain_of(name: str) -> str:
    """The domain of a file by its name."""
    return name.partition("-")[0]


def passages(text: str) -> list[str]:
    """A text cut between paragraphs into passages of `_PASSAGE_BYTES` or a little more."""
    found: list[str] = []
    current: list[str] = []
    size = 0
    for paragraph in text.strip("\n").split("\n\n"):
        current.append(paragraph)
        size += len(paragraph.encode())
        if size >= _PASSAGE_BYTES:
            found.append("\n\n".join(current))
            current, size = [], 0
    if current and found and size < _SHORTEST_BYTES:
        found[-1] = "\n\n".join([found[-1], *current])
    elif current:
        found.append("\n\n".join(current))
    return found


def interleaved(sequences: Sequence[Sequence[Item]]) -> list[Item]:
    """The items of all sequences, each sequence spread evenly over the result and in its order.

    The result begins with the first item of each sequence that has one.
    """
    placed = [
        (index / len(items), which, item) for which, items in enumerate(sequences) for index, item in enumerate(items)
    ]
    return [item for _, _, item in sorted(placed, key=lambda place: place[:2])]
