"""What all layers of a forward pass share: the cache, the position, and everything that depends on positions only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantcli.runner.cache import Cache
from quantcli.runner.rotary import Rope, Rotary, make_rotary
from quantcli.runner.weights import Floats, Weights

Angles = tuple[Floats, Floats]
"""Cosines and sines, float32 `(tokens, pairs)`."""


@dataclass(frozen=True)
class Temperature:
    """Attention temperature: queries at position p are multiplied by log(floor((p + offset) / length) + 1) * scale + 1."""

    scale: float
    length: float
    offset: float


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass over a batch of tokens, the first of which is at `position`.

    `angles` are RoPE's, for layers with full attention and for sliding-window layers. `growth`, float32 `(tokens, 1, 1)`,
    is what layers with an attention temperature multiply queries by.
    """

    cache: Cache
    position: int
    angles: tuple[Angles, Angles] | None
    growth: Floats | None


@dataclass(frozen=True, eq=False)
class Positions:
    """Makes steps. Each pair of rotaries is for layers with full attention and for sliding-window layers.

    `long` replaces `usual` for a context longer than `original_context`, where the model has other frequencies for that
    (LongRoPE).
    """

    temperature: Temperature | None
    original_context: int
    usual: tuple[Rotary, Rotary] | None
    long: tuple[Rotary, Rotary] | None

    def step(self, cache: Cache, first: int, count: int) -> Step:
        """The step of `count` tokens from position `first` on."""
        rotaries, angles = self.rotaries(cache), None
        if rotaries:
            whole = rotaries[0].angles(first, count)
            same = rotaries[0] is rotaries[1]
            angles = (whole, whole if same else rotaries[1].angles(first, count))
        return Step(cache, first, angles, self._growth(first, count))

    def rotaries(self, cache: Cache) -> tuple[Rotary, Rotary] | None:
        """The rotaries for the cache's context length; None without RoPE."""
        beyond = cache.context > self.original_context
        return self.long if beyond and self.long else self.usual

    def _growth(self, first: int, count: int) -> Floats | None:
        temperature = self.temperature
        if temperature is None:
            return None
        positions: NDArray[np.float64] = np.arange(first, first + count, dtype=np.float64) + temperature.offset
        growth: Floats = (np.log(np.floor(positions / temperature.length) + 1) * temperature.scale + 1).astype(np.float32)
        return growth.reshape(-1, 1, 1)


def read_positions(
    weights: Weights, rope: Rope, temperature: Temperature | None, rotates: bool, window_scaled: bool
) -> Positions:
    """The positions of a model. `rotates` says whether it has RoPE.

    `window_scaled` says whether RoPE scaling applies to sliding-window layers too.

    Raises:
        ModelError: where the number of RoPE factors is not the number of pairs.
    """
    original = rope.scaling.original_context
    if not rotates:
        return Positions(temperature, original, None, None)
    pairs = rope.size // 2
    names = ("rope_freqs", "rope_factors_short", "rope_factors_long")
    common, short, long = (weights.optional_vector(f"{name}.weight", pairs) for name in names)

    def both(divisors: Floats | None) -> tuple[Rotary, Rotary]:
        whole = make_rotary(rope, divisors)
        if window_scaled and rope.window_base == rope.base:
            return whole, whole
        return whole, make_rotary(rope, divisors, base=rope.window_base, scaled=window_scaled)

    beyond = None if common is not None or long is None else both(long)
    return Positions(temperature, original, both(short if common is None else common), beyond)
