"""Scaled dot-product attention, with softcapping, masks, ALiBi and attention sinks: shared by all kinds of attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.runner.cache import NOTHING, View
from quantcli.runner.metadata import MetadataReader
from quantcli.runner.mixers.windows import Window
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Weights


@dataclass(frozen=True)
class ScoreSizes:
    """The scale of attention scores, their softcap (0: none), and ALiBi's largest exponent (max_alibi_bias; 0: none)."""

    scale: float
    softcap: float
    alibi: float

    def load(self, weights: Weights, graph: Graph, index: int, window: Window, heads: int, value_size: int) -> Scores:
        """The scores of layer `index`. Raises ModelError for attention sinks that are missing or not one per head."""
        view = View(
            scale=np.float32(self.scale),
            softcap=np.float32(self.softcap),
            window=0 if window.chunked else window.size,
            chunk=window.size if window.chunked else 0,
            ahead=window.ahead,
            slopes=alibi_slopes(heads, self.alibi) if self.alibi > 0 else NOTHING,
            sinks=weights.vector(f"blk.{index}.attn_sinks.weight", heads) if graph.attention_sinks else NOTHING,
        )
        return Scores(layer=index, value_size=value_size, view=view)


@dataclass(frozen=True, eq=False, slots=True)
class Scores:
    """The attention of a layer's queries over its KV cache."""

    layer: int
    value_size: int
    view: View

    def attend(self, query: Floats, step: Step) -> Floats:
        """The attention output `(tokens, heads, value_size)` for queries `(tokens, heads, key_size)`, over the KV cache."""
        mixed = np.empty((query.shape[0], query.shape[1], self.value_size), np.float32)
        step.cache.layers[self.layer].attend(query, step.position, self.view, mixed)
        return mixed


def read_score_sizes(read: MetadataReader, graph: Graph, key_size: int) -> ScoreSizes:
    """The score hyperparameters of all layers. Puts `score_scale` into the scope of later expressions.

    Raises:
        ModelError: for a value that is not a finite number.
    """
    scale = read.formula("attention_scale", graph.attention_scale) or 1 / math.sqrt(max(1, key_size))
    read.scope["score_scale"] = scale
    return ScoreSizes(
        scale=scale,
        softcap=read.formula("attention_softcap", graph.attention_softcap),
        alibi=read.formula("alibi", graph.alibi),
    )


def alibi_slopes(heads: int, largest: float) -> Floats:
    """ALiBi's slope of each head, float32 `(heads,)`: how much a score falls with each position of distance.

    For n heads, n a power of two, the slopes are r, r**2, ..., r**n with r = 2**(-largest / n). Otherwise n is the largest
    power of two below, and the heads beyond n have odd powers of sqrt(r) (Press et al., "Train Short, Test Long", 2021).
    """
    whole = 1 << (heads.bit_length() - 1)
    ratio, root = 2.0 ** (-largest / whole), 2.0 ** (-largest / 2 / whole)
    slopes = [ratio ** (head + 1) if head < whole else root ** (2 * (head - whole) + 1) for head in range(heads)]
    return np.array(slopes, np.float32)
