"""Generation: read a prompt, then choose, show and read one token after another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from quantcli.formats.errors import GenerationError
from quantcli.runner.cache import Cache
from quantcli.runner.model import Model
from quantcli.runner.sampling import Sampler
from quantcli.runner.tokenizer import StreamDecoder, Tokenizer

DEFAULT_CONTEXT: Final = 4096
"""Tokens of context that are enough unless the prompt or the answer asked for are longer."""


@dataclass
class Generation:
    """An answer in the making: iterate over it once, for pieces of text as they become whole characters.

    Up to `limit` tokens (None: no limit) are generated, until the model ends or the cache is full; `stopped` then says
    which: "limit", "end" or "context". `tokens` holds the ids so far, without the one that ended it.
    """

    model: Model
    tokenizer: Tokenizer
    prompt: Sequence[int]
    cache: Cache
    sampler: Sampler
    limit: int | None = None
    tokens: list[int] = field(default_factory=list)
    stopped: str | None = None
    prompt_seconds: float = 0.0
    seconds: float = 0.0

    def __iter__(self) -> Iterator[str]:
        """Raises GenerationError for a prompt that is empty or longer than the cache, or an output that is no number."""
        check_prompt(self.prompt, self.cache)
        decoder = StreamDecoder(self.tokenizer)
        begin = time.perf_counter()
        logits = self.model.forward(self.prompt, self.cache)
        start = time.perf_counter()
        self.prompt_seconds = start - begin
        self.stopped = self._reason_to_stop()
        while self.stopped is None:
            token = self.sampler.choose(logits[0], [*self.prompt, *self.tokens])
            if token in self.tokenizer.end_of_generation:
                self.stopped = "end"
                break
            self.tokens.append(token)
            self.seconds = time.perf_counter() - start
            if piece := decoder.push(token):
                yield piece
            self.stopped = self._reason_to_stop()
            if self.stopped is None:
                logits = self.model.forward([token], self.cache)
        if rest := decoder.finish():
            yield rest

    def _reason_to_stop(self) -> str | None:
        if self.limit is not None and len(self.tokens) >= self.limit:
            return "limit"
        return "context" if len(self.prompt) + len(self.tokens) >= self.cache.context else None

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of reading the prompt; 0 before it was read."""
        return len(self.prompt) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of generation after the first token, which comes with the prompt; 0 for fewer than two tokens."""
        return (len(self.tokens) - 1) / self.seconds if len(self.tokens) > 1 else 0.0


def context_size(trained: int, prompt: int, limit: int | None) -> int:
    """A context for a prompt of so many tokens and an answer of up to `limit`: within what the model was trained on."""
    return min(trained, max(DEFAULT_CONTEXT, prompt + (DEFAULT_CONTEXT if limit is None else limit)))


def check_prompt(prompt: Sequence[int], cache: Cache) -> None:
    """Raises GenerationError for a prompt that is empty, or leaves the cache no room to answer."""
    if not prompt:
        raise GenerationError("the prompt is empty", hint="give the model something to go on")
    if len(prompt) >= cache.context:
        raise GenerationError(
            f"the prompt has {len(prompt)} tokens, and the context of {cache.context} leaves no room for an answer",
            hint=f"--ctx {len(prompt) + 256} makes room",
        )
