"""Rotary position embeddings (RoPE): frequencies, and RoPE scaling (linear, YaRN, LongRoPE)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.architectures.graph import Graph
from quantcli.core.errors import UnsupportedError, shown
from quantcli.runner.metadata import MetadataReader

SCALINGS: Final = ("none", "linear", "yarn", "longrope")
"""Kinds of RoPE scaling."""


@dataclass(frozen=True)
class RopeScaling:
    """RoPE scaling: how frequencies are changed to extend the original context length.

    - `kind` is one of `SCALINGS`, and `factor` the scaling factor (s).
    - `attention` is the magnitude of rotated pairs without YaRN, and `growth` that of YaRN (mscale).
    - `beta_fast` and `beta_slow` are YaRN's, in rotations over the original context.
    """

    kind: str
    factor: float
    original_context: int
    attention: float
    beta_fast: float
    beta_slow: float
    growth: float


@dataclass(frozen=True)
class Rope:
    """RoPE of a model: rotated dimensions of a head, frequency base (theta), that of sliding-window layers, scaling."""

    size: int
    base: float
    window_base: float
    scaling: RopeScaling


@dataclass(frozen=True, eq=False)
class Rotary:
    """RoPE frequencies, float64 `(pairs,)`, in radians per position. `magnitude` multiplies every rotated pair (mscale)."""

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
    rope: Rope, divisors: NDArray[np.float32] | None, *, base: float | None = None, scaled: bool = True
) -> Rotary:
    """The frequencies base**(-2i / size), with the model's RoPE scaling applied where `scaled`.

    `base` is the model's by default. `divisors`, float32 `(pairs,)`, are per-frequency factors from the file
    (`rope_freqs.weight` of Llama 3, `rope_factors_long.weight` of Phi-3). YaRN keeps high frequencies, divides low
    frequencies by the factor, and interpolates between them (Peng et al., "YaRN", 2023, as in ggml's `rope_yarn`).
    """
    scaling, pairs = rope.scaling, rope.size // 2
    base = rope.base if base is None else base
    frequencies = base ** (-np.arange(pairs, dtype=np.float64) / max(1, pairs))
    if divisors is not None:
        frequencies = frequencies / divisors.astype(np.float64)
    if not scaled:
        return Rotary(frequencies, 1.0)
    slowed = frequencies / scaling.factor
    if scaling.kind != "yarn":
        return Rotary(slowed, scaling.attention)
    kept = _unscaled_share(rope, base, pairs)
    return Rotary(slowed * (1 - kept) + frequencies * kept, scaling.growth)


def _unscaled_share(rope: Rope, base: float, pairs: int) -> NDArray[np.float64]:
    """YaRN's ramp: the weight of the unscaled frequency of each pair, 1 for high frequencies and 0 for low ones."""
    scaling = rope.scaling

    def pair_of(turns: float) -> float:
        ratio = scaling.original_context / (turns * 2 * math.pi)
        return rope.size * math.log(ratio) / (2 * math.log(base))

    low = max(0, math.floor(pair_of(scaling.beta_fast)))
    high = min(rope.size - 1, math.ceil(pair_of(scaling.beta_slow)))
    ramp: NDArray[np.float64] = np.clip((np.arange(pairs) - low) / max(0.001, high - low), 0, 1)
    return 1 - ramp


def read_rope_scaling(read: MetadataReader, graph: Graph) -> RopeScaling:
    """The RoPE scaling of a model. Puts `stretch`, log(factor), and `yarn_growth` into the scope of later expressions.

    Raises:
        ModelError: for values that contradict each other.
        UnsupportedError: for an unknown scaling type.
    """
    factor = read.number("rope.scaling.factor" if read.has("rope.scaling.factor") else "rope.scale_linear", 0.0)
    kind = read.text("rope.scaling.type", "linear")
    if kind not in SCALINGS:
        found = f"rope scaling {shown(kind)} is not supported, only {', '.join(SCALINGS)}"
        raise UnsupportedError(f"architecture {read.architecture!r} cannot be run: {found}")
    betas = read.formula("yarn_fast", graph.yarn_fast), read.formula("yarn_slow", graph.yarn_slow)
    if factor < 0 or min(betas) <= 0:
        read.refuse("rope.scaling.factor", (factor, *betas), "positive numbers, as are those of YaRN's betas")
    factor = 1.0 if kind == "none" or factor == 0.0 else factor
    attention = read.number("rope.scaling.attn_factor", 1.0)
    read.scope["stretch"] = math.log(max(1.0, factor))
    growth = read.scope["yarn_growth"] = attention * read.formula("yarn_growth", graph.yarn_growth)
    return RopeScaling(
        kind=kind,
        factor=factor,
        original_context=read.count("rope.scaling.original_context_length", 0) or read.count("context_length"),
        attention=attention,
        beta_fast=betas[0],
        beta_slow=betas[1],
        growth=growth,
    )


def read_rope(read: MetadataReader, graph: Graph, scaling: RopeScaling, rotatable: int) -> Rope:
    """The RoPE of a model. `rotatable` is the smallest number of dimensions that RoPE can rotate in any layer's heads.

    Raises:
        ModelError: for a number of dimensions that is odd or too large, or a frequency base of 1 or less.
    """
    base = read.formula("rope_base", graph.rope_base, 10000.0)
    window_base = read.formula("window_rope_base", graph.window_rope_base, base)
    size = read.count("rope.dimension_count", rotatable)
    if graph.rope != "none":
        if size % 2 or size > rotatable:
            read.refuse("rope.dimension_count", size, f"an even number up to {rotatable}")
        for number in (base, window_base):
            if number <= 1:
                read.refuse("rope.freq_base", number, "more than 1")
    return Rope(size, base, window_base, scaling)
