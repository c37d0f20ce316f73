"""The forward pass: one for all decoders, steered by an architecture's flags and by what the file holds.

Weights stay in the file: each matrix is a view of the memory map and is multiplied as stored. Besides them a model keeps
its norms; a pass keeps a few rows of numbers per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantcli.formats import vocabulary_spec
from quantcli.formats.errors import GenerationError, ModelError, UnsupportedError
from quantcli.formats.gguf_reader import GGUFFile
from quantcli.kernels.rows import dequantize
from quantcli.kernels.types import BlockType
from quantcli.runner.cache import BATCH, Cache
from quantcli.runner.hyperparameters import read_hyperparameters
from quantcli.runner.layers import read_layer
from quantcli.runner.step import read_positions
from quantcli.runner.weights import Floats, Matrix, Norms, Weights


def _check_vocabulary(file: GGUFFile, rows: int) -> None:
    """Raises ModelError unless there is a row for each token, and no more, as the reference asks of a file."""
    tokens = file.metadata.get(vocabulary_spec.TOKENS)
    if tokens is not None and tokens.element is not None and tokens.count != rows:
        what = f"tensor 'token_embd.weight' has {rows} rows, expected one for each of {tokens.count} tokens"
        raise ModelError(f"{file.path}: {what} of the vocabulary")


class Model:
    """A decoder in a GGUF file; its matrices of plain numbers are made blocks of the type `packing`, where there is one.

    `weights_bytes` are those of all tensors, in the file or as they were packed.

    Raises:
        UnsupportedError: for an architecture, a flag or a tensor type that the runner does not know; it is named.
        ModelError: for metadata or tensors that are missing or contradict each other.
    """

    def __init__(
        self, file: GGUFFile, packing: BlockType | None = None, *, architecture_file: Path | None = None
    ) -> None:
        self.sizes, self.graph = read_hyperparameters(file, architecture_file)
        sizes, graph, weights = self.sizes, self.graph, Weights(file, packing)
        centred, weighed = graph.norm != "rms", graph.norm != "layer_without_weight"
        norms = Norms(weights, sizes.norm_epsilon, centred, weighed)
        self.embedding = weights.matrix("token_embd", None, sizes.width)
        self.vocabulary = self.embedding.weights.shape[0]
        _check_vocabulary(file, self.vocabulary)
        self.embedding_norm = norms.read(graph.embedding_norm, sizes.width)
        self.learned_positions = self._read_learned_positions(weights)
        self.segment = self._read_segment(weights)
        self.layers = [read_layer(weights, norms, graph, sizes, index) for index in range(sizes.layers)]
        self.output_norm = norms.read(graph.output_norm, sizes.width)
        tied = not weights.has("output.weight")
        self.output = self.embedding if tied else weights.matrix("output", self.vocabulary, sizes.width)
        self.positions = read_positions(weights, sizes, graph.rope != "none", graph.window_rope == "same")
        self.weights_bytes = sum(tensor.nbytes for tensor in file.tensors.values()) - sum(weights.saved.values())
        unrun = [f"blk.{index}." for index in range(sizes.layers, sizes.layers + sizes.unrun_layers)]
        if unused := [name for name in weights.unused() if not name.startswith((*graph.heads, *unrun))]:
            raise UnsupportedError(
                f"{file.path}: the graph of architecture {sizes.architecture!r} has no place for tensor {unused[0]!r}"
                + (f" and {len(unused) - 1} more" if len(unused) > 1 else "")
            )

    def _read_learned_positions(self, weights: Weights) -> Matrix | None:
        name = "position_embd"
        wanted = self.graph.learned_positions
        if wanted == "never" or (wanted == "where_given" and not weights.has(f"{name}.weight")):
            return None
        return weights.matrix(name, None, self.sizes.width, packs=False)

    def _read_segment(self, weights: Weights) -> Floats | None:
        """The embedding of the first segment: all texts here are one."""
        name, width = "token_types.weight", self.sizes.width
        if not self.graph.segments or not weights.has(name):
            return None
        segments = weights.vector(name, None)
        if len(segments) % width:
            raise ModelError(f"{weights.file.path}: {name} has {len(segments)} numbers, expected a multiple of {width}")
        return segments[:width]

    # Numbers too large for a float32 are infinite as in any other reader, and whoever uses the output looks at it.
    @np.errstate(all="ignore")
    def forward(self, tokens: Sequence[int], cache: Cache, *, every: bool = False) -> Floats:
        """Put tokens after those in `cache` and return logits, float32 `(1, vocabulary)`: those after the last token.

        With `every`, `(len(tokens), vocabulary)`: those after each of them.

        Raises:
            GenerationError: for no tokens, a token that is not in the vocabulary, or more than fit in the cache or have
                positions.
            UnsupportedError: for an encoder, which says nothing of what comes next.
        """
        if not self.sizes.causal:
            name = self.sizes.architecture
            raise UnsupportedError(
                f"architecture {name!r} is an encoder: it gives embeddings of texts, and says nothing",
                hint="quantize embed does that",
            )
        ids = self._checked(tokens, cache)
        results = []
        for start in range(0, len(ids), BATCH):
            hidden = self._layers(ids[start : start + BATCH], cache)
            if every or start + BATCH >= len(ids):
                results.append(self._logits(hidden if every else hidden[-1:]))
        return results[0] if len(results) == 1 else np.concatenate(results)

    @np.errstate(all="ignore")
    def hidden(self, tokens: Sequence[int], cache: Cache) -> Floats:
        """Put tokens after those in `cache` and return what the model makes of each, float32 `(len(tokens), width)`: the
        residual stream after the last norm. An encoder reads them all at once.

        Raises:
            GenerationError: as `forward`.
        """
        ids = self._checked(tokens, cache)
        batch = BATCH if self.sizes.causal else len(ids)
        parts = [self._normed(self._layers(ids[start : start + batch], cache)) for start in range(0, len(ids), batch)]
        return np.concatenate(parts)

    def _checked(self, tokens: Sequence[int], cache: Cache) -> NDArray[np.int64]:
        if not len(tokens):
            raise GenerationError("nothing to read: the prompt has no tokens")
        ids = np.asarray(tokens, np.int64)
        if ids.min() < 0 or ids.max() >= self.vocabulary:
            wrong = ids[(ids < 0) | (ids >= self.vocabulary)][0]
            raise GenerationError(f"token {wrong} is not in the vocabulary of {self.vocabulary}")
        cache.require(len(ids))
        return ids

    def _layers(self, ids: NDArray[np.int64], cache: Cache) -> Floats:
        """The residual stream after the last layer, `(len(ids), width)`; the cache grows by as many positions."""
        x = self._embed(ids, cache.length)
        step = self.positions.step(cache, len(ids))
        for layer in self.layers:
            layer(x, step)
        cache.length += len(ids)
        return x

    def _embed(self, ids: NDArray[np.int64], position: int) -> Floats:
        x = dequantize(self.embedding.weights[ids], self.embedding.type)
        if self.sizes.embedding_scale != 1:
            x *= np.float32(self.sizes.embedding_scale)
        if self.learned_positions is not None:
            learned = self.learned_positions
            last, count = position + len(ids), learned.weights.shape[0]
            if last > count:
                raise GenerationError(f"the model has positions for {count} tokens, and this would be number {last}")
            x += dequantize(learned.weights[position:last], learned.type)
        if self.segment is not None:
            x += self.segment
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def _normed(self, hidden: Floats) -> Floats:
        return hidden if self.output_norm is None else self.output_norm(np.ascontiguousarray(hidden))

    def _logits(self, hidden: Floats) -> Floats:
        logits = self.output(np.ascontiguousarray(self._normed(hidden)))
        if self.sizes.logit_scale != 1:
            logits *= np.float32(self.sizes.logit_scale)
        if self.sizes.logit_softcap > 0:
            cap = np.float32(self.sizes.logit_softcap)
            np.tanh(np.divide(logits, cap, out=logits), out=logits)
            logits *= cap
        return logits
