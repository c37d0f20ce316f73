"""The forward pass: one for all architectures, configured by graph flags and by the tensors of the file.

Weight matrices stay quantized in the memory-mapped file. Only norms and other vectors are held dequantized. A forward pass
allocates a few activation rows per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType
from quantcli.core.errors import GenerationError, ModelError, UnsupportedError
from quantcli.core.listing import listed
from quantcli.formats.gguf import vocabulary as vocabulary_spec
from quantcli.formats.gguf.spec import layer_number
from quantcli.kernels.compilation import expecting
from quantcli.kernels.rows import dequantize
from quantcli.runner.cache import BATCH, Cache
from quantcli.runner.classifier import read_classifier
from quantcli.runner.hyperparameters import read_hyperparameters
from quantcli.runner.layers import read_layer
from quantcli.runner.model_file import ModelFile
from quantcli.runner.step import Step, read_positions
from quantcli.runner.weights import Floats, Matrix, Norms, Observer, Weights


def _check_vocabulary(file: ModelFile, rows: int) -> None:
    """Raises ModelError unless the token embedding has exactly one row per token, as llama.cpp requires."""
    tokens = file.metadata.get(vocabulary_spec.TOKENS)
    if tokens is not None and tokens.element is not None and tokens.count != rows:
        what = f"tensor 'token_embd.weight' has {rows} rows, expected one for each of {tokens.count} tokens"
        raise ModelError(f"{file.path}: {what} of the vocabulary")


class Model:
    """A model loaded from a file. With `packing`, its float matrices are quantized to that type on load.

    `observer` is called with the inputs of every matrix multiplication. `architecture_file` replaces the package's own
    description of the architecture. `weights_bytes` is the size of all tensors, after quantization on load. `forward` and
    `hidden` run all layers. `embed`, `run_layer` and `logits` are the stages of that, to run layer by layer over many
    tokens.

    Raises:
        UnsupportedError: for an unknown architecture, graph flag or tensor type, which it names.
        ModelError: for metadata or tensors that are missing or contradict each other.
    """

    def __init__(
        self,
        file: ModelFile,
        packing: BlockType | None = None,
        observer: Observer | None = None,
        *,
        architecture_file: Path | None = None,
    ) -> None:
        self.sizes, self.graph = read_hyperparameters(file, architecture_file)
        sizes, graph, weights = self.sizes, self.graph, Weights(file, packing, observer)
        norms = self._norms(weights)
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
        self.positions = read_positions(
            weights, sizes.rope, sizes.temperature, graph.rope != "none", graph.window_rope == "same"
        )
        self.classifier = read_classifier(weights, norms, graph, sizes)
        self.weights_bytes = sum(tensor.nbytes for tensor in file.tensors.values()) - sum(weights.saved.values())
        mtp = [f"blk.{index}." for index in range(sizes.layers, sizes.layers + sizes.mtp_layers)]
        if unused := [name for name in weights.unused() if not name.startswith(tuple(mtp))]:
            names = listed([repr(name) for name in unused], most=1)
            what = f"the graph of architecture {sizes.architecture!r} does not use tensor {names}"
            raise UnsupportedError(f"{file.path}: {what}")

    def _norms(self, weights: Weights) -> Norms:
        kind = self.graph.norm
        return Norms(weights, self.sizes.norm_epsilon, kind != "rms", kind != "layer_without_weight")

    def with_tensor(self, file: ModelFile, name: str) -> Model:
        """The model with one matrix as it is in another file: of a layer, the token embedding or the output matrix.

        All other layers are shared with this model. The layer has no observer.

        Raises:
            KeyError: for a tensor that is none of these.
        """
        changed, weights, layer = copy(self), Weights(file), layer_number(name)
        if layer is not None:
            layers = list(self.layers)
            layers[layer] = read_layer(weights, self._norms(weights), self.graph, self.sizes, layer)
            changed.layers = layers
        elif name == self.embedding.name:
            changed.embedding = weights.matrix("token_embd", self.vocabulary, self.sizes.width)
            if self.output is self.embedding:
                changed.output = changed.embedding
        elif name == self.output.name:
            changed.output = weights.matrix("output", self.vocabulary, self.sizes.width)
        else:
            raise KeyError(name)
        return changed

    def _read_learned_positions(self, weights: Weights) -> Matrix | None:
        name = "position_embd"
        wanted = self.graph.learned_positions
        if wanted == "never" or (wanted == "where_given" and not weights.has(f"{name}.weight")):
            return None
        return weights.matrix(name, None, self.sizes.width, packs=False)

    def _read_segment(self, weights: Weights) -> Floats | None:
        """The token type (segment) embedding of segment 0, which every token gets."""
        name, width = "token_types.weight", self.sizes.width
        if not self.graph.segments or not weights.has(name):
            return None
        segments = weights.vector(name, None)
        if len(segments) % width:
            raise ModelError(f"{weights.file.path}: {name} has {len(segments)} numbers, expected a multiple of {width}")
        return segments[:width]

    # An overflow gives infinity or NaN in the output; callers check for that.
    @np.errstate(all="ignore")
    def forward(self, tokens: Sequence[int], cache: Cache, *, every: bool = False) -> Floats:
        """Append tokens to `cache` and return the logits of the last one, float32 `(1, vocabulary)`.

        With `every`, return the logits of every token, `(len(tokens), vocabulary)`.

        Raises:
            GenerationError: for no tokens, for a token that is not in the vocabulary, or for more tokens than fit in the
                cache or have learned position embeddings.
            UnsupportedError: for an encoder, which predicts no next token.
        """
        if not self.sizes.causal:
            name = self.sizes.architecture
            raise UnsupportedError(
                f"architecture {name!r} is an encoder: it computes embeddings and does not generate text",
                hint="quantize embed does that",
            )
        ids = self._checked(tokens, cache)
        with expecting(partial(self.call_kernels, len(ids), cache.type, every=every)):
            return self._forward(ids, cache, every)

    @np.errstate(all="ignore")
    def hidden(self, tokens: Sequence[int], cache: Cache) -> Floats:
        """Append tokens to `cache` and return their hidden states after the output norm, float32 `(len(tokens), width)`.

        An encoder processes all of them in one batch.

        Raises:
            GenerationError: as `forward`.
        """
        ids = self._checked(tokens, cache)
        with expecting(partial(self.call_kernels_of_hidden, len(ids), cache.type)):
            return self._hidden(ids, cache)

    def steps(self, count: int, cache: Cache) -> Iterator[tuple[slice, Step]]:
        """The batches that process `count` tokens after those in `cache`: each a slice of the tokens and its step.

        A batch has at most `BATCH` tokens, or all of them for an encoder. The caller updates the cache's length.
        """
        batch, first = BATCH if self.sizes.causal else count, cache.length
        for start in range(0, count, batch):
            part = slice(start, min(start + batch, count))
            yield part, self.positions.step(cache, first + start, part.stop - start)

    @np.errstate(all="ignore")
    def embed(self, tokens: Sequence[int] | NDArray[np.int64], position: int = 0) -> Floats:
        """The input embeddings of tokens from `position` on, float32 `(len(tokens), width)`.

        Raises:
            GenerationError: for more tokens than there are learned position embeddings.
        """
        ids = np.asarray(tokens, np.int64)
        x = dequantize(self.embedding.weights[ids], self.embedding.type)
        if self.sizes.embedding_scale != 1:
            x *= np.float32(self.sizes.embedding_scale)
        if self.learned_positions is not None:
            learned = self.learned_positions
            last, count = position + len(ids), learned.weights.shape[0]
            if last > count:
                what = f"the model has position embeddings for {count} tokens, and token number {last} follows"
                raise GenerationError(what)
            x += dequantize(learned.weights[position:last], learned.type)
        if self.segment is not None:
            x += self.segment
        return x if self.embedding_norm is None else self.embedding_norm(x)

    @np.errstate(all="ignore")
    def run_layer(self, index: int, hidden: Floats, cache: Cache) -> None:
        """Run layer `index` in place on hidden states, contiguous float32 `(tokens, width)`, of any number of tokens.

        They come after those in `cache`. The layer writes its keys and values, or its recurrent state, to the cache. The
        cache's length does not change.

        Raises:
            GenerationError: for more tokens than fit in the cache.
        """
        cache.require(len(hidden))
        for part, step in self.steps(len(hidden), cache):
            self.layers[index](hidden[part], step)

    def normed(self, hidden: Floats) -> Floats:
        """Apply the output norm to hidden states `(tokens, width)` of the last layer."""
        return hidden if self.output_norm is None else self.output_norm(np.ascontiguousarray(hidden))

    @np.errstate(all="ignore")
    def logits(self, hidden: Floats) -> Floats:
        """The logits, float32 `(tokens, vocabulary)`, for hidden states `(tokens, width)` of the last layer."""
        logits = self.output(np.ascontiguousarray(self.normed(hidden)))
        if self.sizes.logit_scale != 1:
            logits *= np.float32(self.sizes.logit_scale)
        if self.sizes.logit_softcap > 0:
            cap = np.float32(self.sizes.logit_softcap)
            np.tanh(np.divide(logits, cap, out=logits), out=logits)
            logits *= cap
        return logits

    def _forward(self, ids: NDArray[np.int64], cache: Cache, every: bool) -> Floats:
        results = []
        for part, step in self.steps(len(ids), cache):
            hidden = self._run(ids[part], step)
            if every or part.stop == len(ids):
                results.append(self.logits(hidden if every else hidden[-1:]))
        return results[0] if len(results) == 1 else np.concatenate(results)

    def _hidden(self, ids: NDArray[np.int64], cache: Cache) -> Floats:
        return np.concatenate([self.normed(self._run(ids[part], step)) for part, step in self.steps(len(ids), cache)])

    def call_kernels(self, count: int, cache_type: str, *, every: bool) -> None:
        """Call the kernels that `forward` calls for `count` tokens, and for an answer to them, token by token."""
        following = [] if every else [1]
        for tokens in dict.fromkeys([min(count, BATCH), *following]):
            self._forward(np.zeros(tokens, np.int64), Cache(self.sizes, tokens, cache_type), every)

    def call_kernels_of_hidden(self, count: int, cache_type: str) -> None:
        """Call the kernels that `hidden` calls."""
        tokens = min(count, BATCH) if self.sizes.causal else count
        self._hidden(np.zeros(tokens, np.int64), Cache(self.sizes, tokens, cache_type))

    def _run(self, ids: NDArray[np.int64], step: Step) -> Floats:
        """Run all layers: hidden states `(len(ids), width)`, before the output norm. Advances the cache's length."""
        x = self.embed(ids, step.position)
        for layer in self.layers:
            layer(x, step)
        step.cache.length += len(ids)
        return x

    def _checked(self, tokens: Sequence[int], cache: Cache) -> NDArray[np.int64]:
        if not len(tokens):
            raise GenerationError("the prompt has no tokens")
        ids = np.asarray(tokens, np.int64)
        if ids.min() < 0 or ids.max() >= self.vocabulary:
            wrong = ids[(ids < 0) | (ids >= self.vocabulary)][0]
            raise GenerationError(f"token {wrong} is not in the vocabulary of {self.vocabulary}")
        cache.require(len(ids))
        return ids
