"""Generation: read a prompt, then choose, show and read one token after another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from quantcli.runner.session import Session
from quantcli.runner.text.sampling import Sampler
from quantcli.runner.text.stops import StopStrings
from quantcli.runner.text.tokenizer import StreamDecoder, Tokenizer

DEFAULT_CONTEXT: Final = 4096
"""Tokens of context that are enough unless the prompt or the answer asked for are longer."""


@dataclass(frozen=True)
class Limits:
    """What ends an answer besides the model: so many tokens (None: no limit), or any of some texts; with `ignore_end`, the
    model does not end it."""

    tokens: int | None = None
    stop: Sequence[str] = ()
    ignore_end: bool = False


@dataclass
class Generation:
    """An answer in the making: iterate over it once, for pieces of text as they become whole characters.

    `stopped` says in the end why there are no more: "limit", "stop" (a stop string), "end" (the model's own) or "context"
    (the cache is full); it is None for an answer that was interrupted. `tokens` holds the ids so far, without the one that
    ended it, and `text` what was yielded. Of the prompt only what `session` has not read is read, `prompt_read` tokens.
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
        """Raises GenerationError for a prompt that is empty or longer than the cache, or an output that is no number."""
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
        """Read the prompt; then the tokens of the answer, each as it is chosen and before it is read."""
        ends = self.tokenizer.end_of_generation | _control_tokens(self.tokenizer, stops.strings)
        begin = time.perf_counter()
        rest = self.session.start(self.prompt)
        self.prompt_read = len(rest)
        logits = self.session.read(rest)
        start = time.perf_counter()
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
            self.seconds = time.perf_counter() - start
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
        """Speed of reading the prompt; 0 before it was read."""
        return self.prompt_read / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of generation after the first token, which comes with the prompt; 0 for fewer than two tokens."""
        return (len(self.tokens) - 1) / self.seconds if len(self.tokens) > 1 else 0.0


def _control_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> frozenset[int]:
    """The control tokens among `texts`: those are not shown, so no text would ever hold them."""
    encoded = (tokenizer.encode(text, add_special=False, parse_special=True) for text in texts)
    return frozenset(ids[0] for ids in encoded if len(ids) == 1 and tokenizer.is_hidden(ids[0]))


def context_size(trained: int, prompt: int, limit: int | None) -> int:
    """A context for a prompt of so many tokens and an answer of up to `limit`: within what the model was trained on."""
    return min(trained, max(DEFAULT_CONTEXT, prompt + (DEFAULT_CONTEXT if limit is None else limit)))
