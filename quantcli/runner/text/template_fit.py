"""The form in which a chat template shows all of a conversation.

Some templates know texts only, others lists of parts; some have no place for a system message, or refuse one. What a
template does with a conversation is found out by rendering it with marks in place of its texts, as llama.cpp finds out what
a template supports (`caps_get` in `common/jinja/caps.cpp`). The first form in which no mark is lost is taken, so no words
are lost in silence.
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
"""Roles whose words a template may leave out: what it shows of them is what the model was trained on."""


def fitted(messages: Sequence[Message], render: Callable[[list[Message]], str]) -> list[Message]:
    """The messages in the form in which a template loses least of what is said; as they are where it refuses every form.

    Warns of a system message that is put elsewhere, and of what is left out. `render` gives the text of messages.

    Raises:
        GenerationError: if the template takes too long or crashes.
    """
    given = list(messages)
    marked = [_marked(message, index) for index, message in enumerate(given)]
    marks = [(message.get("role"), mark) for message in marked for mark in _texts(message.get("content"))]
    chosen: tuple[Change, Change] = (_as_given, _as_given)
    fewest: list[Any] | None = None  # roles, one for each text that is lost
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
    """The roles that are not the model's side."""
    return [role for role in roles if role not in _ANSWERS]


def _weight(lost: list[Any]) -> tuple[int, int]:
    """What a form loses: first what the user and the system say, then the rest."""
    return len(_questions(lost)), len(lost)


def _tell(given: list[Message], fit: list[Message], place: Change, lost: Iterable[Any]) -> None:
    """Warn of what is not as it was asked for."""
    if place is _with_first_user:
        warn("the file's chat template takes no system message: it is put before the user's first message")
    for role in dict.fromkeys(lost):
        warn(f"the file's chat template leaves out what the role {role} says")
    kept = [part for message in fit for part in _parts(message.get("content"))]
    for message in given:
        for part in _parts(message.get("content")):
            if _text(part) is None and part not in kept:
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                warn(f"the file's chat template takes texts only: a part of type {kind} is left out")


def _marked(message: Message, index: int) -> Message:
    """The message with marks for its texts; what has none to lose, such as white space, stays as it is."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": _mark(content, index, 0)}
    marked = [_mark(part, index, number) for number, part in enumerate(_parts(content))]
    return {**message, "content": marked} if marked else message


def _mark(part: Any, index: int, number: int) -> Any:
    """A text or a part with letters and digits for its words, which templates do not escape, cut or interpret."""
    words = _text(part)
    if words is None or not words.strip():
        return part
    mark = f"mark{index}q{number}z"
    return mark if isinstance(part, str) else {**part, "text": mark}


def _shows(shown: str, mark: str) -> bool:
    """Whether a mark is there, in whatever case, and not as a part of a list in Python's or JSON's notation."""
    found = re.findall(rf"""(['"]text['"]: *['"])?{mark}""", shown, re.IGNORECASE)
    return not mark.strip() or "" in found


def _parts(content: Any) -> list[Any]:
    """The parts of a content that is a list of them."""
    return list(content) if isinstance(content, (list, tuple)) else []


def _text(part: Any) -> str | None:
    """The words of a part, None for an image and the like."""
    words = part.get("text") if isinstance(part, Mapping) else part
    return words if isinstance(words, str) else None


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [text for part in _parts(content) if (text := _text(part)) is not None]


def _as_given(messages: list[Message]) -> list[Message]:
    return messages


def _with_first_user(messages: list[Message]) -> list[Message]:
    """A system message in front becomes the beginning of the first user message, on a line of its own, as in llama.cpp."""
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
    """Every list of parts as the text of its parts, a line each."""
    return [
        {**message, "content": "\n".join(_texts(content))}
        if isinstance(content := message.get("content"), (list, tuple))
        else message
        for message in messages
    ]


def _as_parts(*kept: str) -> Change:
    """Makes every text, but those of some roles, a list of one part."""

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
"""What may be done to a conversation, what changes least first."""
