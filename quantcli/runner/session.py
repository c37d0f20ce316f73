"""What a model has read so far: its cache, and the tokens in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantcli.formats.errors import GenerationError
from quantcli.runner.cache import Cache
from quantcli.runner.model import Model


class Session:
    """A model that reads on where it stopped. Wherever it is interrupted, `tokens` are those in the cache."""

    def __init__(self, model: Model, cache: Cache) -> None:
        self.model = model
        self.cache = cache
        self._given: list[int] = []

    @property
    def tokens(self) -> list[int]:
        """The tokens that were read."""
        return self._given[: self.cache.length]

    def read(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read tokens after those read before; the logits of what follows the last, float32 `(vocabulary,)`.

        Raises:
            GenerationError: as `Model.forward`.
        """
        del self._given[self.cache.length :]
        self._given += tokens
        try:
            logits: NDArray[np.float32] = self.model.forward(tokens, self.cache)[0]
        except BaseException:
            if self.model.sizes.recurrent:
                # Some states know the tokens and others do not.
                self.cache.rewind(0)
            raise
        return logits

    def start(self, prompt: Sequence[int]) -> Sequence[int]:
        """Forget all but the longest beginning of `prompt` that was read before; return the rest of it, to be read now.

        The rest holds the last token at least: what follows it is to be known.

        Raises:
            GenerationError: for a prompt that is empty, or leaves the cache no room to answer.
        """
        check_prompt(prompt, self.cache)
        same = 0
        for old, new in zip(self.tokens, prompt[:-1], strict=False):
            if old != new:
                break
            same += 1
        return prompt[self.cache.rewind(same) :]


def check_prompt(prompt: Sequence[int], cache: Cache) -> None:
    """Raises GenerationError for a prompt that is empty, or leaves the cache no room to answer."""
    if not prompt:
        raise GenerationError("the prompt is empty", hint="give the model something to go on")
    if len(prompt) >= cache.context:
        raise GenerationError(
            f"the prompt has {len(prompt)} tokens, and the context of {cache.context} leaves no room for an answer",
            hint=f"--ctx {len(prompt) + 256} makes room",
        )
