"""Attention whose keys and values come by way of a narrow projection that all heads share (DeepSeek's MLA).

Files hold the way from the narrow rows to keys and values in one of two forms. In one, `attn_kv_b` makes every head's
keys and values, and attention goes on as usual. In the other, "absorbed", the narrow rows themselves are what is cached,
once for all heads: `attn_k_b` takes queries to where they can be compared with them, `attn_v_b` takes what was mixed of
them to values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.formats.errors import ModelError
from quantcli.kernels.elementwise import rotate
from quantcli.runner.attention import Scores, read_scores
from quantcli.runner.hyperparameters import Hyperparameters, Latent
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Matrix, Norm, Norms, Stack, Weights


@dataclass(frozen=True, eq=False, slots=True)
class LatentAttention:
    """`query` are one or two projections, the second of what the norm makes of the first."""

    sizes: Latent
    heads: int
    rope_size: int
    query: tuple[Matrix, ...]
    query_norm: Norm | None
    narrow: Matrix
    narrow_norm: Norm
    widen: Matrix | None
    key: Stack | None
    value: Stack | None
    output: Matrix
    scores: Scores
    adjacent: bool
    windowed: bool

    def __call__(self, x: Floats, step: Step) -> Floats:
        """What attention gives for normed rows `(tokens, width)`; their keys and values go into the cache."""
        count, plain = x.shape[0], self.sizes.key_size - self.rope_size
        query = self._queries(x)
        narrow = self.narrow(x)
        compressed = self.narrow_norm(np.ascontiguousarray(narrow[:, : self.sizes.rank]))
        turned_query = np.ascontiguousarray(query[:, :, plain:])
        turned_key = np.ascontiguousarray(narrow[:, self.sizes.rank :]).reshape(count, 1, self.rope_size)
        if step.angles:
            rotate(turned_query, *step.angles[self.windowed], self.adjacent)
            rotate(turned_key, *step.angles[self.windowed], self.adjacent)
        attend = self._absorbed if self.widen is None else self._widened
        return self.output(attend(query[:, :, :plain], turned_query, compressed, turned_key, step))

    def _queries(self, x: Floats) -> Floats:
        rows = self.query[0](x)
        if self.query_norm is not None:
            rows = self.query[1](self.query_norm(rows))
        return rows.reshape(x.shape[0], self.heads, self.sizes.key_size)

    def _widened(self, query: Floats, turned_query: Floats, narrow: Floats, turned_key: Floats, step: Step) -> Floats:
        """Attention with a key and a value for every head."""
        assert self.widen is not None
        count, plain = query.shape[0], query.shape[2]
        wide = self.widen(narrow).reshape(count, self.heads, plain + self.sizes.value_size)
        key = np.empty((count, self.heads, self.sizes.key_size), np.float32)
        key[:, :, :plain] = wide[:, :, :plain]
        key[:, :, plain:] = turned_key
        self._store(step, key, np.ascontiguousarray(wide[:, :, plain:]))
        return self._attend(np.concatenate([query, turned_query], axis=2), step).reshape(count, -1)

    def _absorbed(self, query: Floats, turned_query: Floats, narrow: Floats, turned_key: Floats, step: Step) -> Floats:
        """Attention over the narrow rows, of which values are the first numbers."""
        assert self.key is not None
        assert self.value is not None
        count, rank = query.shape[0], self.sizes.rank
        self._store(step, np.concatenate([narrow.reshape(count, 1, rank), turned_key], axis=2))
        seeking = np.empty((count, self.heads, rank + self.rope_size), np.float32)
        seeking[:, :, rank:] = turned_query
        for head in range(self.heads):
            seeking[:, head, :rank] = self.key(head, np.ascontiguousarray(query[:, head]))
        mixed = self._attend(seeking, step)
        values = np.empty((count, self.heads, self.sizes.value_size), np.float32)
        for head in range(self.heads):
            values[:, head] = self.value(head, np.ascontiguousarray(mixed[:, head]))
        return values.reshape(count, -1)

    def _store(self, step: Step, key: Floats, value: Floats | None = None) -> None:
        step.cache.layers[self.scores.layer].store(step.position, key, value)

    def _attend(self, query: Floats, step: Step) -> Floats:
        if step.growth is not None:
            query *= step.growth
        return self.scores.attend(query, step)


def read_latent(weights: Weights, graph: Graph, sizes: Hyperparameters, index: int) -> LatentAttention:
    """The attention of a layer.

    Raises:
        ModelError, UnsupportedError: for tensors that are missing, misshapen or of a type that cannot be multiplied by.
    """
    latent, layer, prefix = sizes.latent, sizes.layer[index], f"blk.{index}."
    assert latent is not None
    heads, plain = layer.heads, latent.key_size - sizes.rope_size
    if plain < 1:
        what = f"a key of {latent.key_size} numbers has none beside the {sizes.rope_size} that are turned"
        raise ModelError(f"{weights.file.path}: {what}")
    norms = Norms(weights, sizes.norm_epsilon, graph.norm != "rms")
    queries = heads * latent.key_size
    if weights.has(f"{prefix}attn_q_a.weight"):
        first = weights.matrix(f"{prefix}attn_q_a", latent.query_rank or None, sizes.width)
        rank = first.weights.shape[0]
        query: tuple[Matrix, ...] = (first, weights.matrix(f"{prefix}attn_q_b", queries, rank))
        query_norm = norms.read(["attn_q_a_norm"], rank, prefix)
    else:
        query, query_norm = (weights.matrix(f"{prefix}attn_q", queries, sizes.width),), None
    widen = key = value = None
    if latent.absorbed:
        key = weights.stack(f"{prefix}attn_k_b", heads, latent.rank, plain)
        value = weights.stack(f"{prefix}attn_v_b", heads, latent.value_size, latent.rank)
    else:
        widen = weights.matrix(f"{prefix}attn_kv_b", heads * (plain + latent.value_size), latent.rank)
    narrow_norm = norms.read(["attn_kv_a_norm"], latent.rank, prefix)
    assert narrow_norm is not None
    return LatentAttention(
        sizes=latent,
        heads=heads,
        rope_size=sizes.rope_size,
        query=query,
        query_norm=query_norm,
        narrow=weights.matrix(f"{prefix}attn_kv_a_mqa", latent.rank + sizes.rope_size, sizes.width),
        narrow_norm=narrow_norm,
        widen=widen,
        key=key,
        value=value,
        output=weights.matrix(f"{prefix}attn_output", sizes.width, heads * latent.value_size),
        scores=read_scores(weights, graph, sizes, index),
        adjacent=graph.rope == "adjacent",
        windowed=layer.window > 0,
    )
