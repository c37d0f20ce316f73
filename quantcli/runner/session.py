"""A sequence of tokens that a model has evaluated: its KV cache, and the tokens in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import GenerationError, UsageError
from quantcli.core.listing import counted
from quantcli.runner.cache import Cache
from quantcli.runner.context_shift import check_shift, shift
from quantcli.runner.model import Model


class Session:
    """A model with a KV cache, to continue where it stopped. `tokens` matches the cache even after an interrupt.

    With `keep`, a full cache is shifted: half of the tokens after the first `keep` are discarded (context shift).

    Raises:
        UnsupportedError: for `keep` with a model whose cache cannot be shifted.
        UsageError: for a `keep` that leaves nothing to discard.
    """

    def __init__(self, model: Model, cache: Cache, keep: int | None = None) -> None:
        self.model = model
        self.cache = cache
        self._keep = keep
        self._given: list[int] = []
        if keep is not None:
            check_shift(model)
            if not 0 <= keep <= cache.context - 2:
                raise UsageError(f"a context of {cache.context} tokens cannot be shifted and keep {keep} of them")

    @property
    def shifts(self) -> bool:
        """Whether a full cache is shifted, so that there is always room for one more token."""
        return self._keep is not None

    @property
    def tokens(self) -> list[int]:
        """The tokens in the cache."""
        return self._given[: self.cache.length]

    def read(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Evaluate tokens after those in the cache, and return the logits of the last one, float32 `(vocabulary,)`.

        Raises:
            GenerationError: as `Model.forward`.
        """
        if self._keep is not None and len(tokens) == 1 and self.cache.length == self.cache.context:
            self._forget_half(self._keep)
        del self._given[self.cache.length :]
        self._given += tokens
        try:
            logits: NDArray[np.float32] = self.model.forward(tokens, self.cache)[0]
        except BaseException:
            if self.model.sizes.recurrent:
                # Some layers' recurrent states include the tokens and others do not.
                self.cache.rewind(0)
            raise
        return logits

    def _forget_half(self, keep: int) -> None:
        discard = max(1, (self.cache.length - keep) // 2)
        try:
            shift(self.model, self.cache, keep, discard)
        except BaseException:
            # Some layers have been shifted and others have not.
            self.cache.rewind(0)
            raise
        del self._given[keep : keep + discard]

    def start(self, prompt: Sequence[int]) -> Sequence[int]:
        """Keep the longest prefix of `prompt` in the cache and drop the rest; return the tokens still to be evaluated.

        These include at least the last token, whose logits are needed.

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
            f"the prompt has {counted(len(prompt), 'token')}, too many for an answer in the context of {cache.context}",
            hint=f"--ctx {len(prompt) + 256} or more",
        )
