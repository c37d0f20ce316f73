"""Adapts messages to what a chat template supports, so that it renders all of them.

Some templates support `content` as a string only, others as a list of parts. Some ignore a system message, or refuse one.
The template is probed by rendering the conversation with markers in place of its texts, similar to llama.cpp (`caps_get` in
`common/jinja/caps.cpp`). The first form that loses no marker is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Final

from quantcli.core.errors import warn
from quantcli.runner.text.template import Message, TemplateError

Change = Callable[[list[Message]], list[Message]]

_ANSWERS: Final = ("assistant", "tool")
"""Roles whose content a template may leave out without a warning: the model was trained with the same omissions."""


def fitted(messages: Sequence[Message], render: Callable[[list[Message]], str]) -> list[Message]:
    """The messages in the form of which a template loses least; unchanged where it refuses every form.

    Warns of a system message that is moved, and of content that is left out. `render` renders messages.

    Raises:
        GenerationError: if the template takes too long or crashes.
    """
    given = list(messages)
    marked = [_marked(message, index) for index, message in enumerate(given)]
    marks = [(message.get("role"), mark) for message in marked for mark in _texts(message.get("content"))]
    chosen: tuple[Change, Change] = (_as_given, _as_given)
    fewest: list[Any] | None = None  # the role of each lost text
    tried: list[list[Message]] = []
    for place, form in product(_PLACES, _FORMS):
        probe = form(place(marked))
        if probe in tried:
            continue
        tried.append(probe)
        try:
            shown = render(probe)
        except TemplateError:
            continue
        lost = [role for role, mark in marks if not _shows(shown, mark)]
        if fewest is None or _weight(lost) < _weight(fewest):
            chosen, fewest = (place, form), lost
        if not lost:
            break
    place, form = chosen
    fit = form(place(given))
    _tell(given, fit, place, _questions(fewest or []))
    return fit


def _questions(roles: Iterable[Any]) -> list[Any]:
    """The roles other than assistant and tool."""
    return [role for role in roles if role not in _ANSWERS]


def _weight(lost: list[Any]) -> tuple[int, int]:
    """The loss of a form: texts of user and system first, then all texts."""
    return len(_questions(lost)), len(lost)


def _tell(given: list[Message], fit: list[Message], place: Change, lost: Iterable[Any]) -> None:
    """Warn of content that is moved or left out."""
    if place is _with_first_user:
        warn("the file's chat template does not support a system message: it is prepended to the first user message")
    for role in dict.fromkeys(lost):
        warn(f"the file's chat template leaves out the content of the role {role}")
    kept = [part for message in fit for part in _parts(message.get("content"))]
    for message in given:
        for part in _parts(message.get("content")):
            if _text(part) is None and part not in kept:
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                warn(f"the file's chat template supports text only: a content part of type {kind} is left out")


def _marked(message: Message, index: int) -> Message:
    """The message with markers in place of its texts. White space stays as it is."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": _mark(content, index, 0)}
    marked = [_mark(part, index, number) for number, part in enumerate(_parts(content))]
    return {**message, "content": marked} if marked else message


def _mark(part: Any, index: int, number: int) -> Any:
    """A string or part with a marker as its text. Markers are letters and digits, which templates do not escape or trim."""
    words = _text(part)
    if words is None or not words.strip():
        return part
    mark = f"mark{index}q{number}z"
    return mark if isinstance(part, str) else {**part, "text": mark}


def _shows(shown: str, mark: str) -> bool:
    """Whether a marker was rendered, in any case, and not as the repr or JSON of a list of parts."""
    found = re.findall(rf"""(['"]text['"]: *['"])?{mark}""", shown, re.IGNORECASE)
    return not mark.strip() or "" in found


def _parts(content: Any) -> list[Any]:
    """The parts of `content`; none where it is a string."""
    return list(content) if isinstance(content, (list, tuple)) else []


def _text(part: Any) -> str | None:
    """The text of a part, or None for an image and the like."""
    words = part.get("text") if isinstance(part, Mapping) else part
    return words if isinstance(words, str) else None


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [text for part in _parts(content) if (text := _text(part)) is not None]


def _as_given(messages: list[Message]) -> list[Message]:
    return messages


def _with_first_user(messages: list[Message]) -> list[Message]:
    """Move a leading system message to the beginning of the first user message, on a line of its own, as in llama.cpp."""
    users = [index for index, message in enumerate(messages) if message.get("role") == "user"]
    if not users or messages[0].get("role") != "system":
        return messages
    begin, user = "\n".join(_texts(messages[0].get("content"))) + "\n", messages[users[0]]
    content = user.get("content")
    joined: Any
    match _parts(content):
        case []:
            joined = begin + (content or "")
        case [first, *rest] if (words := _text(first)) is not None:
            joined = [_part(begin + words), *rest]
        case parts:
            joined = [_part(begin), *parts]
    return [*messages[1 : users[0]], {**user, "content": joined}, *messages[users[0] + 1 :]]


def _as_texts(messages: list[Message]) -> list[Message]:
    """Replace every list of parts by the texts of its parts, one per line."""
    return [
        {**message, "content": "\n".join(_texts(content))}
        if isinstance(content := message.get("content"), (list, tuple))
        else message
        for message in messages
    ]


def _as_parts(*kept: str) -> Change:
    """Replaces every string by a list of one part, except for the roles `kept`."""

    def change(messages: list[Message]) -> list[Message]:
        return [
            {**message, "content": [_part(message["content"])]}
            if isinstance(message.get("content"), str) and message.get("role") not in kept
            else message
            for message in messages
        ]

    return change


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


_PLACES: Final[tuple[Change, ...]] = (_as_given, _with_first_user)
_FORMS: Final[tuple[Change, ...]] = (
    _as_given,
    _as_texts,
    _as_parts(),
    _as_parts("system"),
    _as_parts("system", "assistant"),
)
"""The changes to try, those that change least first."""
