"""What the layers of one pass share: where it stands, and what depends on positions alone."""

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
    """How queries grow with their position p: by log(floor((p + offset) / length) + 1) * scale + 1."""

    scale: float
    length: float
    offset: float


@dataclass(frozen=True, slots=True)
class Step:
    """One pass: its tokens come after those in the cache, `position` of them.

    `angles` are those of layers that see everything and of layers with a window. `growth`, float32 `(tokens, 1, 1)`, is
    what queries are multiplied by in layers with a temperature.
    """

    cache: Cache
    position: int
    angles: tuple[Angles, Angles] | None
    growth: Floats | None


@dataclass(frozen=True, eq=False)
class Positions:
    """What makes steps. Rotaries are pairs: for layers that see everything, and for those with a window.

    `long` are those of a context beyond `original_context`, the one a model was first trained on, where they are others.
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
        """Those of a context as long as the cache's."""
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
    """The positions of a model; `rotates` says whether it has RoPE, `window_scaled` whether its scaling is for windows too.

    Raises:
        ModelError: for RoPE factors of another number than there are pairs.
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
