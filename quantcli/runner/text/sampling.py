"""The sampler chain, from logits to the next token, in llama.cpp's order. Each sampler is a pure function.

Penalties, top-k, typical, top-p, min-p, temperature, then a random draw. Temperature 0 is greedy decoding: only penalties
apply, and the largest logit wins. Source: llama.cpp's `llama-sampler.cpp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import GenerationError
from quantcli.runner.text.sampling_options import SamplingOptions

_LARGEST: Final = float(np.finfo(np.float32).max)
_SMALLEST: Final = float(np.finfo(np.float32).tiny)


def diverged() -> GenerationError:
    """The error for logits or hidden states that are NaN or infinite."""
    message = "the model's output is not a number: the file is damaged, or the model overflows here"
    return GenerationError(message, hint="--debug names the tensor that gets the first such values")


class Candidates(NamedTuple):
    """The candidate tokens, in descending order of probability: ids int64 `(n,)`, logits float32 `(n,)`."""

    ids: NDArray[np.int64]
    logits: NDArray[np.float32]


class Sampler:
    """Samples tokens. The same seed and logits give the same tokens."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._random = np.random.default_rng(options.seed)

    def choose(self, logits: NDArray[np.float32], history: Sequence[int]) -> int:
        """The next token after `history`, given its logits, float32 `(vocabulary,)`.

        Raises:
            GenerationError: if a logit is NaN, or the largest is infinite.
        """
        options = self.options
        if np.isnan(logits).any() or not np.isfinite(logits.max()):
            raise diverged()
        logits = penalize(logits, self._recent(history), options)
        if options.temperature == 0:
            return int(np.argmax(logits))
        candidates = keep_top_k(logits, options.top_k)
        candidates = keep_typical(candidates, options.typical_p)
        candidates = keep_top_p(candidates, options.top_p)
        candidates = keep_min_p(candidates, options.min_p)
        distances = candidates.logits.astype(np.float64) - float(candidates.logits[0])
        with np.errstate(over="ignore"):  # an overflow to -inf gives probability 0
            chances = probabilities(distances / options.temperature)
        return int(self._random.choice(candidates.ids, p=chances))

    def _recent(self, history: Sequence[int]) -> Sequence[int]:
        count = self.options.repeat_last_n
        return () if count == 0 else history if count < 0 else history[-count:]


def penalize(logits: NDArray[np.float32], recent: Sequence[int], options: SamplingOptions) -> NDArray[np.float32]:
    """Apply the repeat, presence and frequency penalties to the logits of `recent` tokens.

    A positive logit is divided by the repeat penalty, any other is multiplied by it. Then the presence penalty is
    subtracted, and the frequency penalty times the number of occurrences. Results are clamped to the range of float32.
    """
    neutral = options.repeat_penalty == 1 and options.presence_penalty == 0 and options.frequency_penalty == 0
    if neutral or not len(recent):
        return logits
    ids, counts = np.unique(np.asarray(recent, np.int64), return_counts=True)
    values, penalty = logits[ids], np.float32(np.clip(options.repeat_penalty, _SMALLEST, _LARGEST))
    given = np.clip([options.frequency_penalty, options.presence_penalty], -_LARGEST, _LARGEST)
    frequency, presence = given.astype(np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        penalized = np.where(values <= 0, values * penalty, values / penalty) - (counts * frequency + presence)
    result = logits.copy()
    # A token with a logit of -inf keeps it.
    result[ids] = np.where(np.isfinite(values), np.clip(penalized, -_LARGEST, _LARGEST), values)
    return result


def keep_top_k(logits: NDArray[np.float32], k: int) -> Candidates:
    """Top-k: the `k` tokens with the largest logits (0: all), in descending order. Ties go to the lower id."""
    if 0 < k < len(logits):
        threshold = np.partition(logits, -k)[-k]
        ids = np.flatnonzero(logits >= threshold)
    else:
        ids, k = np.arange(len(logits)), len(logits)
    order = np.argsort(-logits[ids], kind="stable")[:k]
    return Candidates(ids[order], logits[ids[order]])


def keep_top_p(candidates: Candidates, p: float) -> Candidates:
    """Top-p (nucleus) sampling: the fewest most likely candidates whose probabilities sum to `p` or more."""
    if p >= 1:
        return candidates
    reached = np.cumsum(probabilities(candidates.logits.astype(np.float64)))
    count = int(np.searchsorted(reached, p)) + 1
    return Candidates(candidates.ids[:count], candidates.logits[:count])


def keep_typical(candidates: Candidates, p: float) -> Candidates:
    """Locally typical sampling (Meister et al., 2022).

    Keeps the candidates whose surprise, -log(probability), is nearest to its expectation, the entropy: the fewest whose
    probabilities sum to more than `p`.
    """
    if p >= 1:
        return candidates
    chances = probabilities(candidates.logits.astype(np.float64))
    possible = chances > 0
    surprise = np.full(len(chances), np.inf)
    surprise[possible] = -np.log(chances[possible])
    entropy = float(chances[possible] @ surprise[possible])
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    count = int(np.searchsorted(np.cumsum(chances[order]), p, side="right")) + 1
    # In descending order of probability again, as the samplers after this one expect.
    kept = np.sort(order[:count])
    return Candidates(candidates.ids[kept], candidates.logits[kept])


def keep_min_p(candidates: Candidates, p: float) -> Candidates:
    """Min-p: the candidates with at least `p` times the probability of the most likely one."""
    if p <= 0:
        return candidates
    count = max(1, int(np.count_nonzero(candidates.logits >= candidates.logits[0] + np.log(p))))
    return Candidates(candidates.ids[:count], candidates.logits[:count])


def probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """softmax(logits)."""
    weights = np.exp(logits - logits.max())
    result: NDArray[np.float64] = weights / weights.sum()
    return result
