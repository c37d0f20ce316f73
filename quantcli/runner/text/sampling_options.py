"""Sampling parameters and their defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantcli.core.errors import UsageError


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling parameters. The defaults are llama.cpp's. With a `seed` of None every run is different.

    Raises:
        UsageError: for a value out of range, which it names.
    """

    temperature: float = 0.8
    top_k: int = 40
    """Top-k: how many candidates to keep; 0 keeps all."""
    top_p: float = 0.95
    """Top-p (nucleus): keep the most likely candidates whose probabilities sum to this; 1 keeps all."""
    min_p: float = 0.05
    """Min-p: drop candidates with less than this share of the most likely one's probability; 0 drops none."""
    typical_p: float = 1.0
    """Locally typical: keep candidates of about the expected surprise whose probabilities sum to this; 1 keeps all."""
    repeat_penalty: float = 1.0
    """Divide logits of recent tokens by this (multiply negative ones); 1 leaves them alone."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every recent token."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a recent token, once per occurrence."""
    repeat_last_n: int = 64
    """How many of the last tokens penalties apply to: 0 none, -1 all."""
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, self.temperature >= 0, "0 or more"),
            ("top-k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "above 0 and up to 1"),
            ("min-p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1"),
            ("typical-p", self.typical_p, 0 < self.typical_p <= 1, "above 0 and up to 1"),
            ("repeat-penalty", self.repeat_penalty, self.repeat_penalty > 0, "above 0"),
            ("presence-penalty", self.presence_penalty, True, "a finite number"),
            ("frequency-penalty", self.frequency_penalty, True, "a finite number"),
            ("repeat-last-n", self.repeat_last_n, self.repeat_last_n >= -1, "-1 or more"),
            ("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more"),
        )
        for name, value, good, expected in checks:
            if not good or (value is not None and not math.isfinite(value)):
                raise UsageError(f"{name} is {value}, expected {expected}")
