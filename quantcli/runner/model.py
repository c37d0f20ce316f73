"""The forward pass: one for all decoders, steered by an architecture's flags and by what the file holds.

Weights stay in the file: each matrix is a view of the memory map and is multiplied as stored. Besides them a model keeps
its norms; a pass keeps a few rows of numbers per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.formats.errors import GenerationError, ModelError, UnsupportedError
from quantcli.formats.gguf_reader import GGUFFile
from quantcli.formats.tensor import StoredTensor
from quantcli.kernels.elementwise import add, rms_norm, rotate, silu_multiply
from quantcli.kernels.jit import is_compiled
from quantcli.kernels.matmul import Multiply, multiplier
from quantcli.kernels.rows import dequantize
from quantcli.kernels.types import BlockType
from quantcli.runner.cache import Cache
from quantcli.runner.hyperparameters import Graph, Hyperparameters, read_graph, read_hyperparameters
from quantcli.runner.rotary import Rotary, make_rotary

BATCH: Final = 512
"""Tokens that go through the layers together, at most: it bounds the memory of a long prompt."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight matrix in the file, and its bias where the file has one."""

    weights: NDArray[np.uint8]
    type: BlockType
    columns: int
    multiply: Multiply
    bias: Floats | None

    def __call__(self, x: Floats) -> Floats:
        """x @ weights.T + bias: `(tokens, columns)` to `(tokens, rows)`."""
        out = np.empty((x.shape[0], self.weights.shape[0]), np.float32)
        self.multiply(self.weights, x, out)
        if self.bias is not None:
            out += self.bias
        return out


@dataclass(frozen=True, eq=False)
class Layer:
    """The weights of one layer."""

    attention_norm: Floats
    query: Matrix
    key: Matrix
    value: Matrix
    attention_output: Matrix
    mlp_norm: Floats
    gate: Matrix
    up: Matrix
    down: Matrix


class Model:
    """A decoder in a GGUF file.

    Raises:
        UnsupportedError: for an architecture, a flag or a tensor type that the runner does not know; it is named.
        ModelError: for metadata or tensors that are missing or contradict each other.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.sizes: Hyperparameters = read_hyperparameters(file)
        self.graph: Graph = read_graph(self.sizes.architecture)
        weights = _Weights(file)
        sizes = self.sizes
        self.embedding = weights.matrix("token_embd", None, sizes.width)
        self.vocabulary = self.embedding.weights.shape[0]
        self.layers = [_read_layer(weights, f"blk.{index}.", sizes) for index in range(sizes.layers)]
        self.output_norm = weights.vector("output_norm.weight", sizes.width)
        tied = "output.weight" not in file.tensors
        self.output = self.embedding if tied else weights.matrix("output", self.vocabulary, sizes.width)
        self.rotary: Rotary = make_rotary(sizes, weights.optional_vector("rope_freqs.weight", sizes.rope_size // 2))

    @property
    def is_compiled(self) -> bool:
        """Whether the kernels that multiply by this model's matrices are ready: else the first pass compiles them."""
        return all(is_compiled(multiply) for multiply in {matrix.multiply for matrix in self._matrices()})

    def _matrices(self) -> Iterator[Matrix]:
        yield self.output
        for layer in self.layers:
            yield from (part for part in vars(layer).values() if isinstance(part, Matrix))

    def forward(self, tokens: Sequence[int], cache: Cache, *, every: bool = False) -> Floats:
        """Put tokens after those in `cache` and return logits, float32 `(1, vocabulary)`: those after the last token.

        With `every`, `(len(tokens), vocabulary)`: those after each of them.

        Raises:
            GenerationError: for no tokens, a token that is not in the vocabulary, or more than fit in the cache.
        """
        if not len(tokens):
            raise GenerationError("nothing to read: the prompt has no tokens")
        ids = np.asarray(tokens, np.int64)
        if ids.min() < 0 or ids.max() >= self.vocabulary:
            wrong = ids[(ids < 0) | (ids >= self.vocabulary)][0]
            raise GenerationError(f"token {wrong} is not in the vocabulary of {self.vocabulary}")
        cache.require(len(ids))
        results = []
        for start in range(0, len(ids), BATCH):
            hidden = self._layers(ids[start : start + BATCH], cache)
            if every or start + BATCH >= len(ids):
                results.append(self._logits(hidden if every else hidden[-1:]))
        return results[0] if len(results) == 1 else np.concatenate(results)

    def _layers(self, ids: NDArray[np.int64], cache: Cache) -> Floats:
        """The residual stream after the last layer, `(len(ids), width)`; the cache grows by as many positions."""
        x = dequantize(self.embedding.weights[ids], self.embedding.type)
        cosines, sines = self.rotary.angles(cache.length, len(ids))
        for index, layer in enumerate(self.layers):
            add(x, self._attention(x, layer, index, cache, cosines, sines))
            add(x, self._mlp(x, layer))
        cache.length += len(ids)
        return x

    def _attention(
        self, x: Floats, layer: Layer, index: int, cache: Cache, cosines: Floats, sines: Floats
    ) -> Floats:
        sizes, count = self.sizes, x.shape[0]
        normed = self._norm(x, layer.attention_norm)
        query = layer.query(normed).reshape(count, sizes.heads, sizes.head_size)
        key = layer.key(normed).reshape(count, sizes.kv_heads, sizes.head_size)
        value = layer.value(normed).reshape(count, sizes.kv_heads, sizes.head_size)
        adjacent = self.graph.rope_pairs == "adjacent"
        rotate(query, cosines, sines, adjacent)
        rotate(key, cosines, sines, adjacent)
        keys, values, position = cache.keys[index], cache.values[index], cache.length
        cache.kernels.store(key, keys, position)
        cache.kernels.store(value, values, position)
        mixed = np.empty_like(query)
        scale = np.float32(sizes.attention_scale)
        cache.kernels.attend(query, keys, values, position, scale, np.float32(0), 0, mixed)
        return layer.attention_output(mixed.reshape(count, -1))

    def _mlp(self, x: Floats, layer: Layer) -> Floats:
        normed = self._norm(x, layer.mlp_norm)
        gate = layer.gate(normed)
        silu_multiply(gate, layer.up(normed))
        return layer.down(gate)

    def _norm(self, x: Floats, weight: Floats) -> Floats:
        out = np.empty_like(x)
        rms_norm(x, weight, np.float32(self.sizes.norm_epsilon), out)
        return out

    def _logits(self, hidden: Floats) -> Floats:
        return self.output(self._norm(np.ascontiguousarray(hidden), self.output_norm))


def _read_layer(weights: _Weights, prefix: str, sizes: Hyperparameters) -> Layer:
    width, kv_width = sizes.heads * sizes.head_size, sizes.kv_heads * sizes.head_size
    up = weights.matrix(f"{prefix}ffn_up", None, sizes.width)
    inner = up.weights.shape[0]
    return Layer(
        attention_norm=weights.vector(f"{prefix}attn_norm.weight", sizes.width),
        query=weights.matrix(f"{prefix}attn_q", width, sizes.width),
        key=weights.matrix(f"{prefix}attn_k", kv_width, sizes.width),
        value=weights.matrix(f"{prefix}attn_v", kv_width, sizes.width),
        attention_output=weights.matrix(f"{prefix}attn_output", sizes.width, width),
        mlp_norm=weights.vector(f"{prefix}ffn_norm.weight", sizes.width),
        gate=weights.matrix(f"{prefix}ffn_gate", inner, sizes.width),
        up=up,
        down=weights.matrix(f"{prefix}ffn_down", sizes.width, inner),
    )


@dataclass(frozen=True)
class _Weights:
    """The tensors of a file, checked as they are taken."""

    file: GGUFFile

    def matrix(self, name: str, rows: int | None, columns: int) -> Matrix:
        """`NAME.weight`, of `rows` rows (None: any number) of `columns`, with `NAME.bias` where there is one."""
        tensor = self._tensor(f"{name}.weight")
        if len(tensor.shape) != 2 or tensor.shape[1] != columns or rows not in (None, tensor.shape[0]):
            self._refuse(tensor, (rows, columns))
        try:
            multiply = multiplier(tensor.type)
        except ValueError as error:
            raise UnsupportedError(f"{self.file.path}: tensor {tensor.name!r} cannot be run: {error}") from error
        bias = self.optional_vector(f"{name}.bias", tensor.shape[0])
        return Matrix(self.file.map(tensor), tensor.type, columns, multiply, bias)

    def optional_vector(self, name: str, length: int) -> Floats | None:
        return self.vector(name, length) if name in self.file.tensors else None

    def vector(self, name: str, length: int) -> Floats:
        tensor = self._tensor(name)
        if tensor.size != length or tensor.rows != 1:
            self._refuse(tensor, (length,))
        return dequantize(self.file.map(tensor), tensor.type).reshape(-1)

    def _tensor(self, name: str) -> StoredTensor:
        tensor = self.file.tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self.file.path}: the file has no tensor {name!r}, and its architecture needs one")
        return tensor

    def _refuse(self, tensor: StoredTensor, expected: tuple[int | None, ...]) -> None:
        shown = ", ".join("any" if extent is None else str(extent) for extent in expected)
        raise ModelError(f"{self.file.path}: tensor {tensor.name!r} has shape {tensor.shape}, expected ({shown})")
