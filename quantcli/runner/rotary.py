"""Rotary position embeddings (RoPE): how far each pair of numbers of a head is rotated at each position."""

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
    """How angles are stretched beyond the length a model was first trained on. `kind` is one of `SCALINGS`, and `growth`
    what YaRN multiplies rotated pairs by."""

    kind: str
    factor: float
    original_context: int
    attention: float
    beta_fast: float
    beta_slow: float
    growth: float


@dataclass(frozen=True)
class Rope:
    """The numbers of a head that are rotated, the base of their frequencies, that of layers with a window, the scaling."""

    size: int
    base: float
    window_base: float
    scaling: RopeScaling


@dataclass(frozen=True, eq=False)
class Rotary:
    """`frequencies` float64 `(pairs,)`, in radians per position; `magnitude` multiplies every rotated pair."""

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
    """The frequencies base**(-2i / size), stretched as the model asks unless they are not to be `scaled`.

    `base` is the model's where it is not given. `divisors`, float32 `(pairs,)`, are the file's own (`rope_freqs.weight` of
    llama 3, `rope_factors_long.weight` of phi 3). YaRN leaves fast pairs alone, slows slow pairs down by the factor and
    blends between (Peng et al., "YaRN", 2023, as computed by ggml's `rope_yarn`).
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
    """How much of each pair's frequency YaRN keeps: 1 for fast pairs, 0 for slow ones."""
    scaling = rope.scaling

    def pair_of(turns: float) -> float:
        ratio = scaling.original_context / (turns * 2 * math.pi)
        return rope.size * math.log(ratio) / (2 * math.log(base))

    low = max(0, math.floor(pair_of(scaling.beta_fast)))
    high = min(rope.size - 1, math.ceil(pair_of(scaling.beta_slow)))
    ramp: NDArray[np.float64] = np.clip((np.arange(pairs) - low) / max(0.001, high - low), 0, 1)
    return 1 - ramp


def read_rope_scaling(read: MetadataReader, graph: Graph) -> RopeScaling:
    """How angles are stretched. Expressions may use `stretch` and `yarn_growth` from here on.

    Raises:
        ModelError: for values that contradict each other.
        UnsupportedError: for an unknown kind.
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
    """What is rotated, of heads with at least `rotatable` numbers that could be.

    Raises:
        ModelError: for a size that is odd or too large, or a base that is none.
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
