"""Chat: a file's own template turns messages into the prompt its model was trained on, turn after turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from quantcli.core.errors import GenerationError, shown
from quantcli.formats.gguf import vocabulary as spec
from quantcli.formats.gguf.spec import Metadata, ValueType
from quantcli.runner.session import Session
from quantcli.runner.text.generate import Generation, Limits
from quantcli.runner.text.sampling import Sampler
from quantcli.runner.text.template import Message, TemplateRenderer
from quantcli.runner.text.template_fit import fitted
from quantcli.runner.text.tokenizer import Tokenizer

_DEFAULT: Final = "default"
_TOOLS: Final = "tool_use"
_NO_TEMPLATE_HINT: Final = "without --chat the prompt is continued as plain text"

_TEMPLATE_ROLES: Final = ("bos", "eos", "unk", "sep", "pad", "mask")
"""Special tokens whose texts templates are given, as `bos_token` and the like."""


class ChatTemplate:
    """A file's chat template with its tokenizer.

    Of several templates it is the default one, with tools that called `tool_use`, by transformers' rule.

    Raises:
        GenerationError: if the file has no template, or none that is the default.
    """

    def __init__(self, metadata: Metadata, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._templates = templates(metadata)
        if not self._templates:
            raise GenerationError("the file has no chat template", hint=_NO_TEMPLATE_HINT)
        if _DEFAULT not in self._templates:
            names = ", ".join(map(shown, self._templates))
            raise GenerationError(f"the file has no default chat template, only {names}", hint=_NO_TEMPLATE_HINT)
        self._special = _special_texts(metadata, tokenizer)
        # Python takes a while to start, and there is something else to do meanwhile.
        self._renderers = {_DEFAULT: TemplateRenderer(self._templates[_DEFAULT])}

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        **arguments: Any,
    ) -> str:
        """The text of a conversation, up to where the assistant speaks next.

        `tools` are JSON schemas, `arguments` what else a template may ask for, such as `enable_thinking`; with
        `continue_final_message` the text ends within the last message. Messages are put into a form that loses nothing: see
        `template_fit`.

        Raises:
            GenerationError: if the template fails or refuses these messages.
        """
        renderer = self._renderer(_TOOLS if tools is not None and _TOOLS in self._templates else _DEFAULT)
        given = {"tools": tools, "documents": documents, **self._special, **arguments}
        prompted = add_generation_prompt and not continue_final_message
        said = fitted(messages, lambda form: renderer.render(form, add_generation_prompt=prompted, **given))
        return renderer.render(said, add_generation_prompt=prompted, continue_final_message=continue_final_message, **given)

    def _renderer(self, name: str) -> TemplateRenderer:
        if name not in self._renderers:
            self._renderers[name] = TemplateRenderer(self._templates[name])
        return self._renderers[name]

    def encode(self, text: str) -> list[int]:
        """The token ids of a rendered conversation."""
        # Most templates write the begin token themselves, and the vocabulary wants one as well. So it is with the end.
        return self.tokenizer.encode(text, add_special=True, parse_special=True, once=True)


def templates(metadata: Metadata) -> dict[str, str]:
    """A file's chat templates by name; the one without a name is the default.

    Raises:
        GenerationError: if one is not a text.
    """
    prefix = f"{spec.CHAT_TEMPLATE}."
    keys = {key.removeprefix(prefix): key for key in metadata if key.startswith(prefix)}
    if spec.CHAT_TEMPLATE in metadata:
        keys[_DEFAULT] = spec.CHAT_TEMPLATE
    for key in keys.values():
        if metadata[key].type != ValueType.STRING:
            raise GenerationError(f"{shown(key)} is of type {metadata[key].type.name}, expected STRING")
    return {name: str(metadata[key].value) for name, key in keys.items()}


def _special_texts(metadata: Metadata, tokenizer: Tokenizer) -> dict[str, str]:
    """The texts of special tokens by the names templates have for them. One that the file does not name, and that is no
    control token, is only what its kind of vocabulary had at that place once."""
    ids = {role: tokenizer.vocabulary.special.get(role) for role in _TEMPLATE_ROLES}
    return {
        f"{role}_token": tokenizer.piece(id_).decode("utf-8", "replace")
        for role, id_ in ids.items()
        if id_ is not None and (spec.SPECIAL_TOKENS[role] in metadata or tokenizer.is_hidden(id_))
    }


def chat_prompt(metadata: Metadata, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The token ids of a conversation, up to where the assistant speaks next.

    Raises:
        GenerationError: if the file has no template, or it fails or refuses these messages.
    """
    template = ChatTemplate(metadata, tokenizer)
    return template.encode(template.render(messages))


@dataclass(frozen=True)
class _Turn:
    """What was said last: the conversation's text with the answer, and its tokens."""

    text: str
    tokens: Sequence[int]


class Conversation:
    """Messages in turn, and answers to them; each turn reads only what is new."""

    def __init__(
        self, template: ChatTemplate, session: Session, sampler: Sampler, limits: Limits, system: str | None = None
    ) -> None:
        self._template = template
        self._session = session
        self._sampler = sampler
        self._limits = limits
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[Message] = list(self._system)
        self._last: _Turn | None = None
        self._asked: Message = {}
        self._text = ""

    def ask(self, content: str) -> Generation:
        """The answer to a user's message, in the making. The message counts once `record` is given the answer.

        Raises:
            GenerationError: if the template fails or refuses the message.
        """
        self._asked = {"role": "user", "content": content}
        ids = self._prompt()
        while self._session.shifts and len(ids) >= self._session.cache.context and self._forget_half():
            ids = self._prompt()
        return Generation(self._session, self._template.tokenizer, ids, self._sampler, self._limits)

    def _prompt(self) -> list[int]:
        self._text = self._template.render([*self.messages, self._asked])
        return self._continued(self._text) or self._template.encode(self._text)

    def _forget_half(self) -> bool:
        """Forget the older half of the turns; whether there was one."""
        said = self.messages[len(self._system) :]
        forgotten = 2 * -(-len(said) // 4)
        self.messages, self._last = [*self._system, *said[forgotten:]], None
        return forgotten > 0

    def record(self, answer: Generation) -> None:
        """Take the last question and its answer, whole or interrupted, into the conversation."""
        if not answer.tokens:
            return
        self.messages += [self._asked, {"role": "assistant", "content": answer.text}]
        whole = answer.stopped != "stop"
        self._last = _Turn(self._text + answer.text, [*answer.prompt, *answer.tokens]) if whole else None

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._system)
        self._last = None

    def _continued(self, text: str) -> list[int] | None:
        """The tokens of `text` as those of the conversation so far and of what is new; None where it does not go on so.

        A model's tokens for its answer need not be the ones that its text would be cut into.
        """
        if self._last is None or not text.startswith(self._last.text):
            return None
        tokenizer = self._template.tokenizer
        added = tokenizer.encode(text[len(self._last.text) :], add_special=False, parse_special=True)
        # A text on its own would get a space in front, but not a control token.
        if not added or (tokenizer.settings.add_space_prefix and not tokenizer.is_hidden(added[0])):
            return None
        return [*self._last.tokens, *added]
