"""Chat: a file's own template turns messages into the prompt its model was trained on, turn after turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantcli.formats import vocabulary_spec as spec
from quantcli.formats.errors import GenerationError
from quantcli.formats.gguf_spec import Metadata
from quantcli.runner.generate import Generation, Limits
from quantcli.runner.sampling import Sampler
from quantcli.runner.session import Session
from quantcli.runner.template import Message, render_template
from quantcli.runner.tokenizer import Tokenizer


class ChatTemplate:
    """A file's chat template with its tokenizer.

    Raises:
        GenerationError: if the file has no template.
    """

    def __init__(self, metadata: Metadata, tokenizer: Tokenizer) -> None:
        if spec.CHAT_TEMPLATE not in metadata:
            raise GenerationError(
                "the file has no chat template", hint="without --chat the prompt is continued as plain text"
            )
        self.tokenizer = tokenizer
        self._template = str(metadata[spec.CHAT_TEMPLATE].value)
        self._special = {
            f"{role}_token": "" if id_ is None else tokenizer.piece(id_).decode("utf-8", "replace")
            for role, id_ in (("bos", tokenizer.bos), ("eos", tokenizer.eos))
        }

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, up to where the assistant speaks next.

        Raises:
            GenerationError: if the template fails or refuses these messages.
        """
        return render_template(self._template, messages, self._special)

    def encode(self, text: str) -> list[int]:
        """The token ids of a rendered conversation."""
        # Most templates write the begin token themselves, and the vocabulary wants one as well.
        return self.tokenizer.encode(text, add_special=True, parse_special=True, begin_once=True)


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
