"""Chat: renders messages with the file's chat template, turn by turn."""

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
_NO_TEMPLATE_HINT: Final = "--prompt TEXT without --chat is continued as plain text"

_TEMPLATE_ROLES: Final = ("bos", "eos", "unk", "sep", "pad", "mask")
"""Special tokens whose strings are template variables: `bos_token`, `eos_token` and so on."""


class ChatTemplate:
    """A file's chat template with its tokenizer.

    Of several templates, `tool_use` is used where there are tools, else the default one, as in transformers.

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
        # The worker process is started early, because Python takes a while to start.
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
        """The prompt for a conversation, by default with the generation prompt at its end.

        `tools` are JSON schemas. `arguments` are other template variables, such as `enable_thinking`. With
        `continue_final_message` the prompt ends within the last message. Messages are adapted to the template without loss:
        see `template_fit`.

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
        # Most templates write the BOS token themselves, so it must not be added twice. The same holds for the EOS token.
        return self.tokenizer.encode(text, add_special=True, parse_special=True, once=True)


def templates(metadata: Metadata) -> dict[str, str]:
    """A file's chat templates by name. The one without a name is the default.

    Raises:
        GenerationError: if one is not a string.
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
    """The strings of special tokens, by template variable.

    An id that comes from the tokenizer type's defaults, not from the file, counts only if it is a control token."""
    ids = {role: tokenizer.vocabulary.special.get(role) for role in _TEMPLATE_ROLES}
    return {
        f"{role}_token": tokenizer.piece(id_).decode("utf-8", "replace")
        for role, id_ in ids.items()
        if id_ is not None and (spec.SPECIAL_TOKENS[role] in metadata or tokenizer.is_hidden(id_))
    }


def chat_prompt(metadata: Metadata, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The token ids of a conversation, with the generation prompt at its end.

    Raises:
        GenerationError: if the file has no template, or it fails or refuses these messages.
    """
    template = ChatTemplate(metadata, tokenizer)
    return template.encode(template.render(messages))


@dataclass(frozen=True)
class _Turn:
    """The conversation up to the last answer, as text and as tokens."""

    text: str
    tokens: Sequence[int]


class Conversation:
    """A chat with alternating messages and answers. Each turn evaluates only the new tokens."""

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
        """The streamed answer to a user's message. The message joins the conversation when `record` gets the answer.

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
        """Drop the older half of the turns. Returns whether there were any."""
        said = self.messages[len(self._system) :]
        forgotten = 2 * -(-len(said) // 4)
        self.messages, self._last = [*self._system, *said[forgotten:]], None
        return forgotten > 0

    def record(self, answer: Generation) -> None:
        """Append the last question and its answer, complete or interrupted, to the conversation."""
        if not answer.tokens:
            return
        self.messages += [self._asked, {"role": "assistant", "content": answer.text}]
        whole = answer.stopped != "stop"
        self._last = _Turn(self._text + answer.text, [*answer.prompt, *answer.tokens]) if whole else None

    def clear(self) -> None:
        """Drop everything but the system message."""
        self.messages = list(self._system)
        self._last = None

    def _continued(self, text: str) -> list[int] | None:
        """The conversation's tokens so far, followed by those of the new text; None where `text` is not a continuation.

        The sampled tokens of an answer are kept, because tokenizing its text may give others.
        """
        if self._last is None or not text.startswith(self._last.text):
            return None
        tokenizer = self._template.tokenizer
        added = tokenizer.encode(text[len(self._last.text) :], add_special=False, parse_special=True)
        # The new text must not get a space prefix, so it has to begin with a control token.
        if not added or (tokenizer.settings.add_space_prefix and not tokenizer.is_hidden(added[0])):
            return None
        return [*self._last.tokens, *added]
