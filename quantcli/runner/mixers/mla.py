"""Multi-head latent attention (MLA; DeepSeek-AI, "DeepSeek-V2", 2024): all heads share one latent vector per token (c_KV).

Files hold the up-projections in one of two forms.

- `attn_kv_b` expands latent vectors to the keys and values of every head. The rest is multi-head attention.
- `attn_k_b` and `attn_v_b` are absorbed into queries and outputs. `attn_k_b` projects queries to the latent space.
  `attn_v_b` projects the attention output to values. The cache holds only the latent vectors, as in MQA.

Only the last dimensions of each query and key are rotated (decoupled RoPE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.core.errors import ModelError
from quantcli.kernels.elementwise import rotate
from quantcli.runner.cache import LayerMemory
from quantcli.runner.metadata import MetadataReader
from quantcli.runner.mixers.scores import Scores, ScoreSizes, read_score_sizes
from quantcli.runner.mixers.windows import Window, read_rotating, read_windows
from quantcli.runner.sizes import Hyperparameters
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Matrix, Norm, Norms, Stack, Weights


@dataclass(frozen=True)
class MlaSizes:
    """`rank` is kv_lora_rank. `query_rank` is q_lora_rank; 0: queries are not compressed.

    `key_size` and `value_size` are per head. `absorbed` attention caches latent vectors, each followed by `rope_size`
    rotated dimensions.
    """

    heads: int
    query_rank: int
    rank: int
    key_size: int
    value_size: int
    rope_size: int
    absorbed: bool
    window: Window
    rotates: bool
    scores: ScoreSizes

    @property
    def memory(self) -> LayerMemory:
        """The layer's KV cache: keys and values of all heads, or the latent vectors."""
        extents = (1, self.rank + self.rope_size, 0) if self.absorbed else (self.heads, self.key_size, self.value_size)
        window = self.window
        return LayerMemory(
            *extents,
            window=window.size,
            chunked=window.chunked,
            ahead=window.ahead,
            rotated="last" if self.rotates else "none",
        )

    @property
    def rotatable(self) -> int:
        """All dimensions of a key, of which the last are rotated."""
        return min(self.key_size, self.memory.key_size)

    def load(self, weights: Weights, graph: Graph, sizes: Hyperparameters, index: int) -> LatentAttention:
        """The attention of layer `index`.

        Raises:
            ModelError: for a tensor that is missing or has the wrong shape.
            UnsupportedError: for a tensor type that is not supported.
        """
        prefix, heads, rank = f"blk.{index}.", self.heads, self.rank
        plain, output_rows = self.key_size - sizes.rope.size, heads * self.value_size
        if plain < 1:
            what = f"a key of {self.key_size} elements has none besides the {sizes.rope.size} that are rotated"
            raise ModelError(f"{weights.file.path}: {what}")
        norms = Norms(weights, sizes.norm_epsilon, graph.norm != "rms")
        queries, query_norm = self._queries(weights, norms, sizes.width, prefix)
        key = value = expand = None
        if self.absorbed:
            key = weights.stack(f"{prefix}attn_k_b", heads, rank, plain)
            value = weights.stack(f"{prefix}attn_v_b", heads, self.value_size, rank)
        else:
            expand = weights.matrix(f"{prefix}attn_kv_b", heads * (plain + self.value_size), rank)
        compressed_norm = norms.read(["attn_kv_a_norm"], rank, prefix)
        assert compressed_norm is not None
        return LatentAttention(
            sizes=self,
            rope_size=sizes.rope.size,
            queries=queries,
            query_norm=query_norm,
            compress=weights.matrix(f"{prefix}attn_kv_a_mqa", rank + sizes.rope.size, sizes.width),
            compressed_norm=compressed_norm,
            expand=expand,
            key=key,
            value=value,
            output=weights.matrix(f"{prefix}attn_output", sizes.width, output_rows),
            scores=self.scores.load(weights, graph, index, self.window, heads, rank if self.absorbed else self.value_size),
            adjacent=graph.rope == "adjacent",
        )

    def _queries(self, weights: Weights, norms: Norms, width: int, prefix: str) -> tuple[tuple[Matrix, ...], Norm | None]:
        """The query projection, or with compressed queries the down- and up-projection and the norm between them."""
        rows = self.heads * self.key_size
        if not weights.has(f"{prefix}attn_q_a.weight"):
            return (weights.matrix(f"{prefix}attn_q", rows, width),), None
        first = weights.matrix(f"{prefix}attn_q_a", self.query_rank or None, width)
        rank = first.weights.shape[0]
        return (first, weights.matrix(f"{prefix}attn_q_b", rows, rank)), norms.read(["attn_q_a_norm"], rank, prefix)


@dataclass(frozen=True, eq=False, slots=True)
class LatentAttention:
    """An MLA layer. `queries` are the query projection, or a down- and an up-projection with `query_norm` between them.

    `compress` projects to the latent vectors and the rotated part of keys. There is either `expand` (`attn_kv_b`), or `key`
    (`attn_k_b`) and `value` (`attn_v_b`).
    """

    sizes: MlaSizes
    rope_size: int
    queries: tuple[Matrix, ...]
    query_norm: Norm | None
    compress: Matrix
    compressed_norm: Norm
    expand: Matrix | None
    key: Stack | None
    value: Stack | None
    output: Matrix
    scores: Scores
    adjacent: bool

    def __call__(self, x: Floats, step: Step) -> Floats:
        """The attention output for normalized hidden states `(tokens, width)`. Stores keys and values in the cache."""
        count, rank, plain = x.shape[0], self.sizes.rank, self.sizes.key_size - self.rope_size
        query = self._query(x)
        both = self.compress(x)
        compressed = self.compressed_norm(np.ascontiguousarray(both[:, :rank]))
        rotated_query = np.ascontiguousarray(query[:, :, plain:])
        rotated_key = np.ascontiguousarray(both[:, rank:]).reshape(count, 1, self.rope_size)
        if step.angles:
            angles = step.angles[self.sizes.window.size > 0]
            rotate(rotated_query, *angles, self.adjacent)
            rotate(rotated_key, *angles, self.adjacent)
        attend = self._absorbed if self.expand is None else self._expanded
        return self.output(attend(query[:, :, :plain], rotated_query, compressed, rotated_key, step))

    def _query(self, x: Floats) -> Floats:
        rows = self.queries[0](x)
        if self.query_norm is not None:
            rows = self.queries[1](self.query_norm(rows))
        return rows.reshape(x.shape[0], self.sizes.heads, self.sizes.key_size)

    def _expanded(
        self, query: Floats, rotated_query: Floats, compressed: Floats, rotated_key: Floats, step: Step
    ) -> Floats:
        """Attention with keys and values expanded for every head."""
        assert self.expand is not None
        count, heads, plain = query.shape
        expanded = self.expand(compressed).reshape(count, heads, plain + self.sizes.value_size)
        key = np.empty((count, heads, self.sizes.key_size), np.float32)
        key[:, :, :plain] = expanded[:, :, :plain]
        key[:, :, plain:] = rotated_key
        self._store(step, key, np.ascontiguousarray(expanded[:, :, plain:]))
        return self._attend(np.concatenate([query, rotated_query], axis=2), step).reshape(count, -1)

    def _absorbed(
        self, query: Floats, rotated_query: Floats, compressed: Floats, rotated_key: Floats, step: Step
    ) -> Floats:
        """Attention over the latent vectors: the first `rank` dimensions of a key are its value too."""
        assert self.key is not None
        assert self.value is not None
        count, heads, rank = query.shape[0], self.sizes.heads, self.sizes.rank
        self._store(step, np.concatenate([compressed.reshape(count, 1, rank), rotated_key], axis=2))
        projected = np.empty((count, heads, rank + self.rope_size), np.float32)
        projected[:, :, rank:] = rotated_query
        for head in range(heads):
            projected[:, head, :rank] = self.key(head, np.ascontiguousarray(query[:, head]))
        mixed = self._attend(projected, step)
        values = np.empty((count, heads, self.sizes.value_size), np.float32)
        for head in range(heads):
            values[:, head] = self.value(head, np.ascontiguousarray(mixed[:, head]))
        return values.reshape(count, -1)

    def _store(self, step: Step, key: Floats, value: Floats | None = None) -> None:
        step.cache.layers[self.scores.layer].store(step.position, key, value)

    def _attend(self, query: Floats, step: Step) -> Floats:
        if step.growth is not None:
            query *= step.growth
        return self.scores.attend(query, step)


def read_sizes(read: MetadataReader, graph: Graph, count: int, layers: Sequence[int]) -> list[MlaSizes]:
    """The hyperparameters of `layers`, of a model with `count` layers.

    Raises:
        ModelError: for metadata that are missing or contradict each other.
    """
    heads = read.counts("attention.head_count", count)
    common = read.count("embedding_length") // max(1, heads[0])
    key_size = read.count("attention.key_length_mla", 0) or read.count("attention.key_length", common)
    value_size = read.count("attention.value_length_mla", 0) or read.count("attention.value_length", common)
    absorbed = "blk.0.attn_k_b.weight" in read.file.tensors
    rope_size = read.count("rope.dimension_count") if absorbed else read.count("rope.dimension_count", key_size)
    query_rank, rank = read.count("attention.q_lora_rank", 0), read.count("attention.kv_lora_rank")
    windows = read_windows(read, graph, count)
    rotating = read_rotating(read, graph, count)
    scores = read_score_sizes(read, graph, key_size)
    if headless := [layer for layer in layers if heads[layer] < 1]:
        raise ModelError(f"{read.file.path}: layer {headless[0]} has no attention heads")
    common_sizes = query_rank, rank, key_size, value_size, rope_size, absorbed
    return [MlaSizes(heads[layer], *common_sizes, windows[layer], rotating[layer], scores) for layer in layers]
