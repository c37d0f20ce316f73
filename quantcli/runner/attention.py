"""Attention with heads of queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.formats.errors import ModelError
from quantcli.kernels.elementwise import rotate
from quantcli.runner.cache import View
from quantcli.runner.hyperparameters import Hyperparameters, LayerSizes
from quantcli.runner.step import Angles, Step
from quantcli.runner.weights import Floats, Matrix, Norm, Norms, Weights

NOTHING: Floats = np.empty(0, np.float32)
"""What the kernels take for no slopes and no sinks."""


@dataclass(frozen=True, eq=False, slots=True)
class Scores:
    """How a layer's queries look at its part of the cache."""

    layer: int
    value_size: int
    view: View

    def attend(self, query: Floats, step: Step) -> Floats:
        """Mixed values `(tokens, heads, value_size)` for queries `(tokens, heads, key_size)`, over the cache."""
        mixed = np.empty((query.shape[0], query.shape[1], self.value_size), np.float32)
        step.cache.layers[self.layer].attend(query, step.position, self.view, mixed)
        return mixed


@dataclass(frozen=True, eq=False, slots=True)
class HeadNorm:
    """A norm of queries or keys: of each head by itself, which may have weights of its own, or over all heads."""

    norm: Norm
    over_all: bool
    own: Floats | None

    def __call__(self, x: Floats) -> Floats:
        """Heads `(tokens, heads, size)`, normed, in a new array."""
        flat = x.reshape(x.shape[0], -1) if self.over_all else x.reshape(-1, x.shape[2])
        normed = self.norm(flat).reshape(x.shape)
        if self.own is not None:
            normed *= self.own
        return normed


@dataclass(frozen=True, eq=False, slots=True)
class Attention:
    """Projections to heads and back, and what happens between them.

    `parts` holds one projection for queries, keys and values together, or three.
    """

    sizes: LayerSizes
    parts: tuple[Matrix, ...]
    output: Matrix
    scores: Scores
    query_norm: HeadNorm | None
    key_norm: HeadNorm | None
    norm_after_rope: bool
    clamp: np.float32
    adjacent: bool
    windowed: bool
    warms: bool

    def __call__(self, x: Floats, step: Step) -> Floats:
        """What attention gives for normed rows `(tokens, width)`; their keys and values go into the cache."""
        query, key, value = self._project(x)
        turn = step.angles[self.windowed] if self.sizes.turns and step.angles else None
        query = self._place(query, self.query_norm, turn)
        key = self._place(key, self.key_norm, turn)
        if self.warms and step.growth is not None:
            query *= step.growth
        step.cache.layers[self.scores.layer].store(step.position, key, value)
        return self.output(self.scores.attend(query, step).reshape(x.shape[0], -1))

    def _project(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        count, sizes = x.shape[0], self.sizes
        extents = ((sizes.heads, sizes.key_size), (sizes.kv_heads, sizes.key_size), (sizes.kv_heads, sizes.value_size))
        if len(self.parts) == 3:
            rows = [part(x) for part in self.parts]
        else:
            rows, place = [], 0
            whole = self.parts[0](x)
            for heads, size in extents:
                rows.append(np.ascontiguousarray(whole[:, place : place + heads * size]))
                place += heads * size
        if self.clamp > 0:
            for part in rows:
                np.clip(part, -self.clamp, self.clamp, out=part)
        query, key, value = (part.reshape(count, *extent) for part, extent in zip(rows, extents, strict=True))
        return query, key, value

    def _place(self, heads: Floats, norm: HeadNorm | None, turn: Angles | None) -> Floats:
        """Queries or keys, normed and turned."""
        if norm is not None and not self.norm_after_rope:
            heads = norm(heads)
        if turn is not None:
            rotate(heads, *turn, self.adjacent)
        if norm is not None and self.norm_after_rope:
            heads = norm(heads)
        return heads


def read_attention(weights: Weights, graph: Graph, sizes: Hyperparameters, index: int) -> Attention:
    """The attention of a layer.

    Raises:
        ModelError, UnsupportedError: for tensors that are missing, misshapen or of a type that cannot be multiplied by.
    """
    layer, prefix = sizes.layer[index], f"blk.{index}."
    rows = layer.heads * layer.key_size, layer.kv_heads * layer.key_size, layer.kv_heads * layer.value_size
    names = [f"{prefix}attn_{part}" for part in "qkv"]
    if weights.has(f"{prefix}attn_qkv.weight"):
        biases = [f"{name}.bias" for name in names]
        parts: tuple[Matrix, ...] = (weights.matrix(f"{prefix}attn_qkv", sum(rows), sizes.width, biases),)
    else:
        parts = tuple(weights.matrix(name, count, sizes.width) for name, count in zip(names, rows, strict=True))
    return Attention(
        sizes=layer,
        parts=parts,
        output=weights.matrix(f"{prefix}attn_output", sizes.width, layer.heads * layer.value_size),
        scores=read_scores(weights, graph, sizes, index),
        query_norm=_read_head_norm(weights, graph, sizes, f"{prefix}attn_q_norm", layer, layer.heads),
        key_norm=_read_head_norm(weights, graph, sizes, f"{prefix}attn_k_norm", layer, layer.kv_heads),
        norm_after_rope=graph.head_norm_after_rope,
        clamp=np.float32(sizes.clamp),
        adjacent=graph.rope == "adjacent",
        windowed=layer.window > 0,
        warms=graph.temperature_layers == "all" or not layer.turns,
    )


def read_scores(weights: Weights, graph: Graph, sizes: Hyperparameters, index: int) -> Scores:
    """How the queries of a layer look at the cache. Raises ModelError for sinks that are missing or not one per head."""
    layer = sizes.layer[index]
    sinks = weights.vector(f"blk.{index}.attn_sinks.weight", layer.heads) if graph.attention_sinks else NOTHING
    value_size = layer.value_size or (sizes.latent.rank if sizes.latent else 0)
    view = View(
        scale=np.float32(sizes.attention_scale),
        softcap=np.float32(sizes.attention_softcap),
        window=0 if layer.chunked else layer.window,
        chunk=layer.window if layer.chunked else 0,
        ahead=layer.ahead,
        slopes=alibi_slopes(layer.heads, sizes.alibi) if sizes.alibi > 0 else NOTHING,
        sinks=sinks,
    )
    return Scores(layer=index, value_size=value_size, view=view)


def alibi_slopes(heads: int, largest: float) -> Floats:
    """Per head by how much a score falls with each position, float32 `(heads,)`.

    Powers of one ratio for as many heads as a power of two has; those beyond take every second power of its root (Press et
    al., "Train Short, Test Long", 2021).
    """
    whole = 1 << (heads.bit_length() - 1)
    ratio, root = 2.0 ** (-largest / whole), 2.0 ** (-largest / 2 / whole)
    slopes = [ratio ** (head + 1) if head < whole else root ** (2 * (head - whole) + 1) for head in range(heads)]
    return np.array(slopes, np.float32)


def _read_head_norm(
    weights: Weights, graph: Graph, sizes: Hyperparameters, name: str, layer: LayerSizes, heads: int
) -> HeadNorm | None:
    """The norm of queries or keys: its weights are one head's, one each for every head, or for all numbers of a row."""
    norms = Norms(weights, sizes.norm_epsilon, graph.head_norm == "layer")
    if graph.head_norm == "unit_rms":
        return HeadNorm(norms.make(np.ones(layer.key_size, np.float32)), False, None) if layer.turns else None
    full = f"{name}.weight"
    if graph.head_norm == "none" or (graph.head_norm_optional and not weights.has(full)):
        return None
    weight = weights.vector(full, None)
    shape = weights.file.tensors[full].shape
    if shape == (heads, layer.key_size):
        unit = norms.make(np.ones(layer.key_size, np.float32))
        return HeadNorm(unit, False, weight.reshape(shape))
    if shape in ((layer.key_size,), (heads * layer.key_size,)):
        bias = weights.optional_vector(f"{name}.bias", len(weight))
        return HeadNorm(norms.make(weight, bias), len(weight) != layer.key_size, None)
    expected = f"({layer.key_size},), ({heads}, {layer.key_size}) or ({heads * layer.key_size},)"
    raise ModelError(f"{weights.file.path}: tensor {full!r} has shape {shape}, expected {expected}")
