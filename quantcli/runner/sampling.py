"""From logits to the next token: steps that are pure functions, in the order llama.cpp takes them.

penalties, top-k, top-p, min-p, temperature, and a draw from what is left. Temperature 0 takes the largest logit instead,
and then nothing but the penalties matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantcli.formats.errors import GenerationError, UsageError


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose. The defaults are llama.cpp's; a `seed` of None draws differently each time.

    Raises:
        UsageError: for a value that has no meaning; it is named.
    """

    temperature: float = 0.8
    top_k: int = 40
    """Candidates to keep; 0 keeps all."""
    top_p: float = 0.95
    """Keep the likeliest candidates that together have this probability; 1 keeps all."""
    min_p: float = 0.05
    """Drop candidates less likely than this share of the likeliest one's probability; 0 drops none."""
    repeat_penalty: float = 1.0
    """Divide logits of recent tokens by this (multiply negative ones); 1 leaves them alone."""
    penalty_window: int = 64
    """How many tokens are recent."""
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, self.temperature >= 0, "0 or more"),
            ("top-k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "above 0 and up to 1"),
            ("min-p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repeat penalty", self.repeat_penalty, self.repeat_penalty > 0, "above 0"),
            ("penalty window", self.penalty_window, self.penalty_window >= 0, "0 or more"),
            ("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more"),
        )
        for name, value, good, expected in checks:
            if not good or (value is not None and not math.isfinite(value)):
                raise UsageError(f"{name} is {value}, expected {expected}")


class Candidates(NamedTuple):
    """Tokens that may come next, the likeliest first: ids int64 `(n,)`, their logits float32 `(n,)`."""

    ids: NDArray[np.int64]
    logits: NDArray[np.float32]


class Sampler:
    """Chooses tokens; the same seed and logits give the same choices."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._random = np.random.default_rng(options.seed)

    def choose(self, logits: NDArray[np.float32], history: Sequence[int]) -> int:
        """The next token after `history`, given its logits, float32 `(vocabulary,)`.

        Raises:
            GenerationError: if a logit is not a number or nothing is likely.
        """
        options = self.options
        if np.isnan(logits).any() or not np.isfinite(logits.max()):
            raise GenerationError("the model's output is not a number: the file is damaged, or the model diverges here")
        recent = history[-options.penalty_window :] if options.penalty_window else ()
        logits = penalize(logits, recent, options.repeat_penalty)
        if options.temperature == 0:
            return int(np.argmax(logits))
        candidates = keep_top_k(logits, options.top_k)
        candidates = keep_top_p(candidates, options.top_p)
        candidates = keep_min_p(candidates, options.min_p)
        chances = probabilities(candidates.logits.astype(np.float64) / options.temperature)
        return int(self._random.choice(candidates.ids, p=chances))


def penalize(logits: NDArray[np.float32], recent: Sequence[int], penalty: float) -> NDArray[np.float32]:
    """Logits with those of `recent` tokens made smaller: divided by `penalty`, or multiplied where they are negative."""
    if penalty == 1 or not recent:
        return logits
    ids = np.unique(np.asarray(recent, np.int64))
    values = logits[ids]
    result = logits.copy()
    result[ids] = np.where(values <= 0, values * np.float32(penalty), values / np.float32(penalty))
    return result


def keep_top_k(logits: NDArray[np.float32], k: int) -> Candidates:
    """The `k` tokens with the largest logits (0: all), the largest first, of equal ones the lower id."""
    if 0 < k < len(logits):
        threshold = np.partition(logits, -k)[-k]
        ids = np.flatnonzero(logits >= threshold)
    else:
        ids, k = np.arange(len(logits)), len(logits)
    order = np.argsort(-logits[ids], kind="stable")[:k]
    return Candidates(ids[order], logits[ids[order]])


def keep_top_p(candidates: Candidates, p: float) -> Candidates:
    """The shortest run of the likeliest candidates whose probabilities reach `p` together."""
    if p >= 1:
        return candidates
    reached = np.cumsum(probabilities(candidates.logits.astype(np.float64)))
    count = int(np.searchsorted(reached, p)) + 1
    return Candidates(candidates.ids[:count], candidates.logits[:count])


def keep_min_p(candidates: Candidates, p: float) -> Candidates:
    """The candidates at least `p` times as likely as the first."""
    if p <= 0:
        return candidates
    count = max(1, int(np.count_nonzero(candidates.logits >= candidates.logits[0] + np.log(p))))
    return Candidates(candidates.ids[:count], candidates.logits[:count])


def probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """softmax(logits)."""
    weights = np.exp(logits - logits.max())
    result: NDArray[np.float64] = weights / weights.sum()
    return result
