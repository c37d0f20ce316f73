"""Multiple-choice questions from files of JSON lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Final

from quantcli.core.errors import FormatError, shown
from quantcli.formats.json_text import parse_object


@dataclass(frozen=True)
class Question:
    """A prompt and its possible endings, which continue it as they are. `answer` is the index of the right one."""

    line: int
    prompt: str
    endings: tuple[str, ...]
    answer: int


Build = Callable[[Mapping[str, Any], str, list[str]], tuple[str, list[str]]]
"""From a line's object, its prompt and its choices: the prompt and the endings that are scored."""


@dataclass(frozen=True)
class Layout:
    """The names of a published format of questions, and how its lines are put to a model."""

    title: str
    prompt: str
    choices: str
    answer: str
    build: Build

    @property
    def keys(self) -> tuple[str, str, str]:
        """The keys of a line."""
        return self.prompt, self.choices, self.answer


_BRACKETED: Final = re.compile(r"\[.*?\]")


def _without_markup(text: str) -> str:
    """A text of HellaSwag without WikiHow's markup, as lm-evaluation-harness removes it."""
    return _BRACKETED.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _hellaswag(line: Mapping[str, Any], context: str, endings: list[str]) -> tuple[str, list[str]]:
    activity = line.get("activity_label")
    prompt = f"{activity}: {context}" if isinstance(activity, str) and activity else context
    return _without_markup(prompt), [f" {_without_markup(ending)}" for ending in endings]


def _mmlu(line: Mapping[str, Any], question: str, choices: list[str]) -> tuple[str, list[str]]:
    subject = line.get("subject")
    about = f" about {subject.replace('_', ' ')}" if isinstance(subject, str) and subject else ""
    letters = ascii_uppercase[: len(choices)]
    offered = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=False))
    head = f"The following are multiple choice questions (with answers){about}."
    return f"{head}\n\n{question.strip()}\n{offered}\nAnswer:", [f" {letter}" for letter in letters]


def _plain(line: Mapping[str, Any], prompt: str, endings: list[str]) -> tuple[str, list[str]]:
    return prompt, endings


LAYOUTS: Final = (
    Layout("HellaSwag", "ctx", "endings", "label", _hellaswag),
    Layout("MMLU", "question", "choices", "answer", _mmlu),
    Layout("plain", "prompt", "endings", "answer", _plain),
)


def read_questions(path: Path) -> list[Question]:
    """The questions of a file of JSON lines, each in one of `LAYOUTS`. Empty lines are skipped.

    Raises:
        FormatError: if a line is not a question, which names the line; or if there is none.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise FormatError(path, error.strerror or str(error)) from error
    questions = [_question(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not questions:
        raise FormatError(path, "no questions, expected one JSON object per line")
    return questions


def _question(path: Path, number: int, text: bytes) -> Question:
    where = f"line {number}"
    line = parse_object(path, text, where, unique=False)
    layout = next((layout for layout in LAYOUTS if all(key in line for key in layout.keys)), None)
    if layout is None:
        known = "; or ".join(f"{', '.join(layout.keys)} ({layout.title})" for layout in LAYOUTS)
        raise FormatError(path, f"{where} is no question, expected the keys {known}")
    prompt, choices = line[layout.prompt], line[layout.choices]
    if not isinstance(prompt, str) or not prompt.strip():
        raise FormatError(path, f"{where}: {layout.prompt!r} is {shown(prompt)}, expected a text")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise FormatError(path, f"{where}: {layout.choices!r} is {shown(choices)}, expected a list of texts")
    if not 2 <= len(choices) <= len(ascii_uppercase):
        raise FormatError(path, f"{where}: {layout.choices!r} has a length of {len(choices)}, expected 2 to 26")
    built, endings = layout.build(line, prompt, choices)
    right = _answer(path, f"{where}: {layout.answer!r}", line[layout.answer], len(choices))
    return Question(number, built, tuple(endings), right)


def _answer(path: Path, where: str, value: object, count: int) -> int:
    """The index of the right choice, which HellaSwag writes as a string."""
    index = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 3 else value
    if type(index) is not int or not 0 <= index < count:
        what = f"{where} is {shown(value)}, expected the number of the right choice, 0 to {count - 1}"
        hint = "the test split of HellaSwag has no answers: use the validation split" if value == "" else None
        raise FormatError(path, what, hint=hint)
    return index
