"""Text generation: evaluates the prompt, then samples, decodes and evaluates token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from quantcli.kernels.compilation import running_seconds
from quantcli.runner.session import Session
from quantcli.runner.text.sampling import Sampler
from quantcli.runner.text.stops import StopStrings
from quantcli.runner.text.tokenizer import StreamDecoder, Tokenizer

DEFAULT_CONTEXT: Final = 4096
"""The default context length, unless the prompt or the requested answer are longer."""


@dataclass(frozen=True)
class Limits:
    """What ends an answer, besides an end-of-generation token: `tokens` (None: no limit), or a `stop` string.

    With `ignore_end`, end-of-generation tokens are never sampled.
    """

    tokens: int | None = None
    stop: Sequence[str] = ()
    ignore_end: bool = False


@dataclass
class Generation:
    """A streamed answer. Iterate over it once, for pieces of text made of whole characters.

    - `stopped` is the reason why it ended, or None for an interrupted answer. It is "limit", "stop" (a stop string), "end"
      (an end-of-generation token) or "context" (the cache is full).
    - `tokens` are the ids so far, without the token that ended the answer. `text` is the text yielded so far.
    - `prompt_read` is the number of prompt tokens that were evaluated. The prefix in the session's cache is reused.
    """

    session: Session
    tokenizer: Tokenizer
    prompt: Sequence[int]
    sampler: Sampler
    limits: Limits = Limits()
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    stopped: str | None = None
    prompt_read: int = 0
    prompt_seconds: float = 0.0
    seconds: float = 0.0

    def __iter__(self) -> Iterator[str]:
        """Raises GenerationError for a prompt that is empty or does not fit in the cache, or logits that are not finite."""
        stops = StopStrings(self.limits.stop)
        decoder = StreamDecoder(self.tokenizer)
        for token in self._tokens(stops):
            yield from self._shown(stops.push(decoder.push(token)))
            if stops.found is not None:
                self.stopped = "stop"
                return
        yield from self._shown(stops.push(decoder.finish()) + stops.finish())

    def _shown(self, piece: str) -> Iterator[str]:
        self.text += piece
        if piece:
            yield piece

    def _tokens(self, stops: StopStrings) -> Iterator[int]:
        """Evaluate the prompt, then yield the answer's tokens, each before it is evaluated."""
        ends = self.tokenizer.end_of_generation | _control_tokens(self.tokenizer, stops.strings)
        begin = running_seconds()
        rest = self.session.start(self.prompt)
        self.prompt_read = len(rest)
        logits = self.session.read(rest)
        start = running_seconds()
        self.prompt_seconds = start - begin
        history = list(self.prompt)
        while (reason := self._reason_to_stop()) is None:
            if self.limits.ignore_end:
                logits[list(self.tokenizer.end_of_generation)] = -np.inf
            token = self.sampler.choose(logits, history)
            if token in ends:
                self.stopped = "end" if token in self.tokenizer.end_of_generation else "stop"
                return
            self.tokens.append(token)
            history.append(token)
            self.seconds = running_seconds() - start
            yield token
            if self._reason_to_stop() is None:
                logits = self.session.read([token])
        self.stopped = reason

    def _reason_to_stop(self) -> str | None:
        if self.limits.tokens is not None and len(self.tokens) >= self.limits.tokens:
            return "limit"
        full = not self.session.shifts and len(self.prompt) + len(self.tokens) >= self.session.cache.context
        return "context" if full else None

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of prompt processing; 0 before it is done."""
        return self.prompt_read / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of token generation; 0 for fewer than two tokens. The first token counts as prompt processing."""
        return (len(self.tokens) - 1) / self.seconds if len(self.tokens) > 1 else 0.0


def _control_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> frozenset[int]:
    """The control tokens among stop strings. They are not decoded to text, so they must be matched by id."""
    encoded = (tokenizer.encode(text, add_special=False, parse_special=True) for text in texts)
    return frozenset(ids[0] for ids in encoded if len(ids) == 1 and tokenizer.is_hidden(ids[0]))


def context_size(trained: int, prompt: int, limit: int | None) -> int:
    """A context length for a prompt of so many tokens and an answer of up to `limit`, at most that of training."""
    return min(trained, max(DEFAULT_CONTEXT, prompt + (DEFAULT_CONTEXT if limit is None else limit)))
