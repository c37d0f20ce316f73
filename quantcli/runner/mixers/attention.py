"""Multi-head attention (MHA), with grouped-query (GQA) and multi-query attention (MQA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantcli.architectures.graph import Graph
from quantcli.core.errors import ModelError
from quantcli.kernels.elementwise import rotate
from quantcli.runner.cache import LayerMemory
from quantcli.runner.metadata import REQUIRED, MetadataReader
from quantcli.runner.mixers.scores import Scores, ScoreSizes, read_score_sizes
from quantcli.runner.mixers.windows import Window, read_rotating, read_windows
from quantcli.runner.sizes import Hyperparameters
from quantcli.runner.step import Angles, Step
from quantcli.runner.weights import Floats, Matrix, Norm, Norms, Weights


@dataclass(frozen=True)
class AttentionSizes:
    """Heads, attention window and RoPE of a layer. `clamp` is the bound of Q, K and V (clamp_kqv); 0: no clamping.

    `key_size` and `value_size` are per head. `rotates` says whether the layer has RoPE.
    """

    heads: int
    kv_heads: int
    key_size: int
    value_size: int
    window: Window
    rotates: bool
    scores: ScoreSizes
    clamp: float

    @property
    def memory(self) -> LayerMemory:
        """The layer's KV cache."""
        return LayerMemory(
            kv_heads=self.kv_heads,
            key_size=self.key_size,
            value_size=self.value_size,
            window=self.window.size,
            chunked=self.window.chunked,
            ahead=self.window.ahead,
            rotated="first" if self.rotates else "none",
        )

    @property
    def rotatable(self) -> int:
        """All dimensions of a key."""
        return self.key_size

    def load(self, weights: Weights, graph: Graph, sizes: Hyperparameters, index: int) -> Attention:
        """The attention of layer `index`, with a fused QKV projection where the file has one, else three projections.

        Raises:
            ModelError: for a tensor that is missing or has the wrong shape.
            UnsupportedError: for a tensor type that is not supported.
        """
        prefix = f"blk.{index}."
        rows = self.heads * self.key_size, self.kv_heads * self.key_size, self.kv_heads * self.value_size
        names = [f"{prefix}attn_{part}" for part in "qkv"]
        if weights.has(f"{prefix}attn_qkv.weight"):
            biases = [f"{name}.bias" for name in names]
            projections: tuple[Matrix, ...] = (weights.matrix(f"{prefix}attn_qkv", sum(rows), sizes.width, biases),)
        else:
            projections = tuple(weights.matrix(name, count, sizes.width) for name, count in zip(names, rows, strict=True))
        norms = Norms(weights, sizes.norm_epsilon, graph.head_norm == "layer")
        return Attention(
            sizes=self,
            projections=projections,
            output=weights.matrix(f"{prefix}attn_output", sizes.width, self.heads * self.value_size),
            scores=self.scores.load(weights, graph, index, self.window, self.heads, self.value_size),
            query_norm=self._head_norm(norms, graph, f"{prefix}attn_q_norm", self.heads),
            key_norm=self._head_norm(norms, graph, f"{prefix}attn_k_norm", self.kv_heads),
            norm_after_rope=graph.head_norm_after_rope,
            adjacent=graph.rope == "adjacent",
            tempered=graph.temperature_layers == "all" or not self.rotates,
        )

    def _head_norm(self, norms: Norms, graph: Graph, name: str, heads: int) -> HeadNorm | None:
        """The QK norm of queries or keys, by its weight's shape.

        - `(head size,)`: each head is normalized by itself, with a shared weight.
        - `(heads, head size)`: each head is normalized by itself, with its own weight.
        - `(heads * head size,)`: all heads of a token are normalized together.
        """
        weights, size, full = norms.weights, self.key_size, f"{name}.weight"
        unit = norms.make(np.ones(size, np.float32))
        if graph.head_norm == "unit_rms":
            return HeadNorm(unit, False, None) if self.rotates else None
        if graph.head_norm == "none" or (graph.head_norm_optional and not weights.has(full)):
            return None
        weight = weights.vector(full, None)
        shape = weights.file.tensors[full].shape
        if shape == (heads, size):
            return HeadNorm(unit, False, weight.reshape(shape))
        if shape in ((size,), (heads * size,)):
            bias = weights.optional_vector(f"{name}.bias", len(weight))
            return HeadNorm(norms.make(weight, bias), len(weight) != size, None)
        expected = f"({size},), ({heads}, {size}) or ({heads * size},)"
        raise ModelError(f"{weights.file.path}: tensor {full!r} has shape {shape}, expected {expected}")


@dataclass(frozen=True, eq=False, slots=True)
class HeadNorm:
    """QK norm: over each head, or with `over_all` over all heads of a token. `own` are separate weights for each head."""

    norm: Norm
    over_all: bool
    own: Floats | None

    def __call__(self, x: Floats) -> Floats:
        """Normalize `(tokens, heads, head size)`, into a new array."""
        flat = x.reshape(x.shape[0], -1) if self.over_all else x.reshape(-1, x.shape[2])
        normed = self.norm(flat).reshape(x.shape)
        if self.own is not None:
            normed *= self.own
        return normed


@dataclass(frozen=True, eq=False, slots=True)
class Attention:
    """An attention layer.

    `projections` are a fused QKV projection, or one each for Q, K and V. `adjacent` says that RoPE rotates adjacent pairs
    (GPT-J style), not halves (NeoX style). `tempered` applies the step's attention temperature to queries.
    """

    sizes: AttentionSizes
    projections: tuple[Matrix, ...]
    output: Matrix
    scores: Scores
    query_norm: HeadNorm | None
    key_norm: HeadNorm | None
    norm_after_rope: bool
    adjacent: bool
    tempered: bool

    def __call__(self, x: Floats, step: Step) -> Floats:
        """The attention output for normalized hidden states `(tokens, width)`. Stores keys and values in the cache."""
        query, key, value = self._project(x)
        angles = step.angles[self.sizes.window.size > 0] if self.sizes.rotates and step.angles else None
        query = self._norm_and_rotate(query, self.query_norm, angles)
        key = self._norm_and_rotate(key, self.key_norm, angles)
        if self.tempered and step.growth is not None:
            query *= step.growth
        step.cache.layers[self.scores.layer].store(step.position, key, value)
        return self.output(self.scores.attend(query, step).reshape(x.shape[0], -1))

    def _project(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        count, sizes = x.shape[0], self.sizes
        extents = ((sizes.heads, sizes.key_size), (sizes.kv_heads, sizes.key_size), (sizes.kv_heads, sizes.value_size))
        if len(self.projections) == 3:
            rows = [projection(x) for projection in self.projections]
        else:
            rows, start = [], 0
            whole = self.projections[0](x)
            for heads, size in extents:
                rows.append(np.ascontiguousarray(whole[:, start : start + heads * size]))
                start += heads * size
        if sizes.clamp > 0:
            bound = np.float32(sizes.clamp)
            for numbers in rows:
                np.clip(numbers, -bound, bound, out=numbers)
        query, key, value = (numbers.reshape(count, *extent) for numbers, extent in zip(rows, extents, strict=True))
        return query, key, value

    def _norm_and_rotate(self, heads: Floats, norm: HeadNorm | None, angles: Angles | None) -> Floats:
        """Apply QK norm and RoPE to queries or keys, in the model's order."""
        if norm is not None and not self.norm_after_rope:
            heads = norm(heads)
        if angles is not None:
            rotate(heads, *angles, self.adjacent)
        if norm is not None and self.norm_after_rope:
            heads = norm(heads)
        return heads


def read_sizes(read: MetadataReader, graph: Graph, count: int, layers: Sequence[int]) -> list[AttentionSizes]:
    """The hyperparameters of `layers`, of a model with `count` layers.

    Raises:
        ModelError: for metadata that are missing or contradict each other.
    """
    heads = read.counts("attention.head_count", count, 0 if graph.recurrent != "none" else REQUIRED)
    kv_heads = read.counts("attention.head_count_kv", count, list(heads))
    windows = read_windows(read, graph, count)
    rotating = read_rotating(read, graph, count)
    extents = {layer: _head_sizes(read, heads[layer], kv_heads[layer]) for layer in layers}
    scores = read_score_sizes(read, graph, max(key_size for key_size, _ in extents.values()))
    clamp = read.formula("projection_clamp", graph.projection_clamp)
    sizes = [
        AttentionSizes(heads[layer], kv_heads[layer], *extents[layer], windows[layer], rotating[layer], scores, clamp)
        for layer in layers
    ]
    _check_window_sizes(read, sizes)
    return sizes


def _head_sizes(read: MetadataReader, heads: int, kv_heads: int) -> tuple[int, int]:
    """The head sizes of keys and values. Raises ModelError unless the heads are a multiple of the key-value heads (GQA)."""
    if heads < 1 or heads % kv_heads:
        raise ModelError(f"{read.file.path}: {heads} attention heads cannot share {kv_heads} key-value heads")
    common = read.count("embedding_length") // heads
    sizes = read.count("attention.key_length", common), read.count("attention.value_length", common)
    for key, size in zip(("key", "value"), sizes, strict=True):
        if size < 1:
            read.refuse(f"attention.{key}_length", size, "the size of a head")
    return sizes


def _check_window_sizes(read: MetadataReader, layers: Sequence[AttentionSizes]) -> None:
    """Raises ModelError where sliding-window layers have other head sizes: that is not supported."""
    for layer in layers:
        own = {"attention.key_length_swa": layer.key_size, "attention.value_length_swa": layer.value_size}
        for key, size in own.items():
            if layer.window.size and (found := read.count(key, size)) != size:
                read.refuse(key, found, f"{size}, as in layers without a window: other sizes cannot be run")
