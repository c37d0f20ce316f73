"""Rotary positions: how far each pair of numbers of a head is turned at each position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantcli.runner.hyperparameters import Hyperparameters, RopeScaling


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


def make_rotary(sizes: Hyperparameters, divisors: NDArray[np.float32] | None) -> Rotary:
    """The frequencies base**(-2i / size), stretched as the model asks.

    `divisors`, float32 `(pairs,)`, are the file's own (`rope_freqs.weight`, llama 3). YaRN leaves fast pairs alone, slows
    slow pairs down by the factor and blends between (Peng et al., "YaRN", 2023, as computed by ggml's `rope_yarn`).
    """
    scaling, pairs = sizes.rope_scaling, sizes.rope_size // 2
    frequencies = sizes.rope_base ** (-np.arange(pairs, dtype=np.float64) / pairs)
    if divisors is not None:
        frequencies = frequencies / divisors.astype(np.float64)
    slowed = frequencies / scaling.factor
    if scaling.kind != "yarn" or scaling.extrapolation == 0:
        return Rotary(slowed, scaling.attention)
    kept = _unscaled_share(sizes, pairs) * scaling.extrapolation
    return Rotary(slowed * (1 - kept) + frequencies * kept, _yarn_magnitude(scaling))


def _unscaled_share(sizes: Hyperparameters, pairs: int) -> NDArray[np.float64]:
    """How much of each pair's frequency YaRN keeps: 1 for those that turn often within the original context, 0 for rare."""
    scaling = sizes.rope_scaling

    def pair_of(turns: float) -> float:
        ratio = scaling.original_context / (turns * 2 * math.pi)
        return sizes.rope_size * math.log(ratio) / (2 * math.log(sizes.rope_base))

    low = max(0, math.floor(pair_of(scaling.beta_fast)))
    high = min(sizes.rope_size - 1, math.ceil(pair_of(scaling.beta_slow)))
    ramp: NDArray[np.float64] = np.clip((np.arange(pairs) - low) / max(0.001, high - low), 0, 1)
    return 1 - ramp


def _yarn_magnitude(scaling: RopeScaling) -> float:
    def growth(multiplier: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * multiplier * math.log(scaling.factor) + 1

    return scaling.attention * growth(1) / (growth(scaling.log_multiplier) if scaling.log_multiplier else 1)
