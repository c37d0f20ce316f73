"""Rotary positions: how far each pair of numbers of a head is turned at each position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantcli.runner.hyperparameters import Hyperparameters


@dataclass(frozen=True, eq=False)
class Rotary:
    """`frequencies` float64 `(pairs,)`, in radians per position; `magnitude` multiplies every turned pair."""

    frequencies: NDArray[np.float64]
    magnitude: float

    def angles(self, first: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines, float32 `(count, pairs)`, of `count` positions from `first` on, times the magnitude."""
        angles = np.arange(first, first + count, dtype=np.float64)[:, None] * self.frequencies
        return (
            (np.cos(angles) * self.magnitude).astype(np.float32),
            (np.sin(angles) * self.magnitude).astype(np.float32),
        )


def make_rotary(
    sizes: Hyperparameters, divisors: NDArray[np.float32] | None, *, base: float | None = None, scaled: bool = True
) -> Rotary:
    """The frequencies base**(-2i / size), stretched as the model asks unless they are not to be `scaled`.

    `base` is the model's where it is not given. `divisors`, float32 `(pairs,)`, are the file's own (`rope_freqs.weight` of
    llama 3, `rope_factors_long.weight` of phi 3). YaRN leaves fast pairs alone, slows slow pairs down by the factor and
    blends between (Peng et al., "YaRN", 2023, as computed by ggml's `rope_yarn`).
    """
    scaling, pairs = sizes.rope_scaling, sizes.rope_size // 2
    base = sizes.rope_base if base is None else base
    frequencies = base ** (-np.arange(pairs, dtype=np.float64) / max(1, pairs))
    if divisors is not None:
        frequencies = frequencies / divisors.astype(np.float64)
    if not scaled:
        return Rotary(frequencies, 1.0)
    slowed = frequencies / scaling.factor
    if scaling.kind != "yarn":
        return Rotary(slowed, scaling.attention)
    kept = _unscaled_share(sizes, base, pairs)
    return Rotary(slowed * (1 - kept) + frequencies * kept, scaling.growth)


def _unscaled_share(sizes: Hyperparameters, base: float, pairs: int) -> NDArray[np.float64]:
    """How much of each pair's frequency YaRN keeps: 1 for those that turn often within the original context, 0 for rare."""
    scaling = sizes.rope_scaling

    def pair_of(turns: float) -> float:
        ratio = scaling.original_context / (turns * 2 * math.pi)
        return sizes.rope_size * math.log(ratio) / (2 * math.log(base))

    low = max(0, math.floor(pair_of(scaling.beta_fast)))
    high = min(sizes.rope_size - 1, math.ceil(pair_of(scaling.beta_slow)))
    ramp: NDArray[np.float64] = np.clip((np.arange(pairs) - low) / max(0.001, high - low), 0, 1)
    return 1 - ramp
