"""A Modelfile for Ollama: the template in Go's template language, stop strings, sampling parameters.

Ollama does not run a file's chat template. On `ollama create` it compares its text with those that it knows and takes its
own Go template for the nearest, if one is near enough; otherwise a prompt goes to the model without a template. So the
template is written out: the texts around each message are found by rendering marked conversations, and the Go template that
is made of them is written if it gives the same prompts for other conversations.

Source: `docs/modelfile.md`, `template/template.go` and `server/create.go` of Ollama.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from types import MappingProxyType
from typing import Any, Final

from quantcli.core.errors import GenerationError
from quantcli.formats.gguf.spec import Metadata, ValueType
from quantcli.runner.text.chat import ChatTemplate, templates
from quantcli.runner.text.template import Message
from quantcli.runner.text.tokenizer import Tokenizer

_PARAMETERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "temp": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "min_p": "min_p",
        "penalty_repeat": "repeat_penalty",
        "penalty_last_n": "repeat_last_n",
    }
)
"""KEY of `general.sampling.KEY` -> Ollama's parameter."""

_DAYS: Final = (datetime(2024, 1, 1), datetime(2025, 11, 12))
"""Two days, to find templates that say the date."""

_UNQUOTABLE: Final = ("{{", "}}", '"""')

NO_TEMPLATE: Final = """\
# The file's chat template cannot be written as a Go template. Ollama takes one of its own if it recognizes the file's;
# otherwise add one: TEMPLATE \"\"\"...\"\"\""""


@dataclass(frozen=True)
class Wrapping:
    """The texts around the messages of a conversation.

    system      before and after a system message
    begin       what a conversation without one begins with
    user        before a question, and after it up to the answer
    answer      before an answer that was given, beyond what `user` has, and after it
    """

    system: tuple[str, str]
    begin: str
    user: tuple[str, str]
    answer: tuple[str, str]

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for a conversation, as the Go template gives it."""
        first, *rest = messages
        has_system = first["role"] == "system"
        text = self.system[0] + first["content"] + self.system[1] if has_system else self.begin
        for message in rest if has_system else messages:
            asked = message["role"] == "user"
            before, after = self.user if asked else self.answer
            text += before + message["content"] + after
        return text

    @property
    def go(self) -> str:
        """The Go template."""
        system = "{{ if .System }}" + self.system[0] + "{{ .System }}" + self.system[1] + "{{ else }}" + self.begin
        user = '{{ if eq .Role "user" }}' + self.user[0] + "{{ .Content }}" + self.user[1]
        answer = '{{ else if eq .Role "assistant" }}' + self.answer[0] + "{{ .Content }}" + self.answer[1]
        return system + "{{ end }}{{ range .Messages }}" + user + answer + "{{ end }}{{ end }}"


def modelfile(
    metadata: Metadata, tokenizer: Tokenizer, source: str, *, system: str | None = None, context: int | None = None
) -> str:
    """The text of a Modelfile.

    Args:
        metadata: those of the GGUF file.
        tokenizer: its tokenizer.
        source: the path of the file, for FROM.
        system: a system message.
        context: the context length, for `num_ctx`; Ollama's default without it.

    Raises:
        GenerationError: if the chat template takes too long or crashes.
    """
    lines = [f"FROM {source}"]
    if templates(metadata):
        wrapping = find_wrapping(ChatTemplate(metadata, tokenizer))
        lines.append(NO_TEMPLATE if wrapping is None else f'TEMPLATE """{wrapping.go}"""')
        lines += [f"PARAMETER stop {_quoted(text)}" for text in stop_strings(tokenizer)]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters(metadata).items()]
    if context is not None:
        lines.append(f"PARAMETER num_ctx {context}")
    if system is not None:
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join(lines) + "\n"


def parameters(metadata: Metadata) -> dict[str, str]:
    """The sampling parameters that the model's own configuration recommends, under Ollama's names."""
    found = {}
    for key, name in _PARAMETERS.items():
        field = metadata.get(f"general.sampling.{key}")
        if field is not None and field.type in (ValueType.FLOAT32, ValueType.INT32, ValueType.UINT32):
            found[name] = f"{field.value:.6g}"
    return found


def stop_strings(tokenizer: Tokenizer) -> list[str]:
    """The texts of the tokens that end an answer."""
    ids = sorted(tokenizer.vocabulary.end_of_generation)
    texts = (tokenizer.piece(id_).decode("utf-8", "replace") for id_ in ids)
    return [text for text in dict.fromkeys(texts) if text.strip()]


def find_wrapping(template: ChatTemplate) -> Wrapping | None:
    """The texts around the messages of a template; None where it is not made of such texts alone."""
    system, users = "mark0z", ("mark1z", "mark2z", "mark3z")
    answers = ("mark4z", "mark5z")
    asked = _turns(None, users[:2], answers[:1])
    try:
        # At least two turns: some templates treat the first one in a special way.
        plain = _between(_rendered(template, asked), [users[0], answers[0], users[1]])
        with_system = _between(_rendered(template, _turns(system, users[:1], ())), [system, users[0]])
    except (GenerationError, ValueError):
        return None
    first, to_answer, between, last = plain
    if not to_answer.startswith(last):
        return None
    bos = _bos(template)
    first = first.removeprefix(bos)
    before = _common_suffix([first, between, with_system[1]])
    cut = len(before)
    found = Wrapping(
        system=(with_system[0].removeprefix(bos), with_system[1][: len(with_system[1]) - cut]),
        begin=first[: len(first) - cut],
        user=(before, last),
        answer=(to_answer.removeprefix(last), between[: len(between) - cut]),
    )
    texts = (*found.system, found.begin, *found.user, *found.answer)
    if any(mark in text for text in texts for mark in _UNQUOTABLE):
        return None
    others = [_turns(said, users, answers) for said in (None, system)]
    others.append(_turns("Be brief, {please}.", ("Why? 2 < 3",), ()))
    return found if all(_agree(found, template, bos, messages) for messages in others) else None


def _agree(found: Wrapping, template: ChatTemplate, bos: str, messages: Sequence[Message]) -> bool:
    try:
        shown = [_rendered(template, messages, now=day) for day in _DAYS]
    except GenerationError:
        return False
    return all(text.removeprefix(bos) == found.render(messages) for text in shown)


def _rendered(template: ChatTemplate, messages: Sequence[Message], **arguments: Any) -> str:
    """A conversation with the generation prompt. Without a place for a system message, that is put before the question."""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return template.render(messages, **arguments)


def _turns(system: str | None, users: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """A conversation that ends with a question."""
    found: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for place, user in enumerate(users):
        found.append({"role": "user", "content": user})
        if place < len(users) - 1:
            found.append({"role": "assistant", "content": answers[place]})
    return found


def _between(text: str, marks: Sequence[str]) -> list[str]:
    """The texts before, between and after the marks. Raises ValueError unless each is there once, in this order."""
    found = []
    for mark in marks:
        before, separator, text = text.partition(mark)
        if not separator or mark in text:
            raise ValueError(mark)
        found.append(before)
    return [*found, text]


def _common_suffix(texts: Sequence[str]) -> str:
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*(reversed(text) for text in texts), strict=False))
    return "".join(letters[0] for letters in same)[::-1]


def _bos(template: ChatTemplate) -> str:
    """The text of the begin token, which Ollama adds itself where the file says so."""
    tokenizer = template.tokenizer
    added = tokenizer.encode("", add_special=True)
    return tokenizer.piece(added[0]).decode("utf-8", "replace") if added else ""


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
