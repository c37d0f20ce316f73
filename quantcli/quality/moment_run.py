"""Runs a model layer by layer on calibration tokens, and gives the inputs of each layer's products.

Memory holds the hidden states of all tokens and one layer's moments. The moments are those of the model before it is
quantized: collecting them again behind quantized layers gained nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import warn
from quantcli.kernels.compilation import compile_ahead, running_seconds
from quantcli.kernels.products.outer_sums import MULTIPLE, add_upper_products
from quantcli.kernels.scoring import score
from quantcli.quality.imatrix import cut_texts
from quantcli.quality.moments import MomentCollector
from quantcli.quality.stored_moments import Found, StoredMoments
from quantcli.runner.cache import Cache
from quantcli.runner.load import prepare_model
from quantcli.runner.model_file import ModelFile

Floats = NDArray[np.float32]

CONTEXT: Final = 512
"""Tokens of a chunk of calibration text, as llama-imatrix's."""

HELD_OUT: Final = 16
"""One chunk of so many is held out: results are tried on it."""


STRANGE: Final = 500.0
"""A perplexity that says that a text is of a language or a kind that the model does not know."""

_TRIED_CHUNKS: Final = 64
_TRIED_TOKENS: Final = 16
"""It is measured on so many tokens of so many chunks."""


class MomentRun:
    """The run of a model on calibration tokens.

    layers      the number of layers
    output      the name of the output matrix, which is the token embedding where they are tied
    tokens      how many tokens are run
    model       the model. Its observer ignores the inputs of other runs
    chunks      the tokens
    is_stored   whether the moments of all layers are stored, so that nothing is run

    Raises:
        UnsupportedError, ModelError: if the model cannot be run.
        GenerationError: for a text of less than two chunks.
    """

    def __init__(
        self,
        file: ModelFile,
        texts: Sequence[tuple[str, str]],
        tokens: int,
        *,
        wanted: Callable[[str], bool],
        begin: Callable[[str, int], Callable[[int], Any]],
        stored: StoredMoments | None = None,
        architecture_file: Path | None = None,
    ) -> None:
        self._collector, self._begin, self._stored = MomentCollector(wanted, paused=True), begin, stored
        loaded = prepare_model(file, None, self._collector, architecture_file=architecture_file)
        self.model = loaded.model
        self.layers, self.output = self.model.sizes.layers, self.model.output.name
        context = min(CONTEXT, self.model.sizes.context or CONTEXT)
        self.chunks = cut_texts(loaded.tokenizer, texts, context, max(2, tokens // context))
        self.tokens = context * len(self.chunks)
        self._cache = Cache(self.model.sizes, context, "f32")
        self._hidden: list[Floats] = []
        self._done = 0
        self.is_stored = stored is not None and stored.is_complete(self.layers)
        if not self.is_stored:
            compile_ahead(partial(self._call_kernels, context))

    def seconds(self) -> float:
        """About how long all chunks take through all layers, from one chunk in the first layer."""
        hidden = self.model.embed(self.chunks[0])
        self._collector.paused = False
        start = running_seconds()
        self._cache.rewind(0)
        with np.errstate(all="ignore"):
            self.model.run_layer(0, hidden, self._cache)
        taken = running_seconds() - start
        self._collector.paused = True
        self._collector.take()
        return taken * self.layers * len(self.chunks)

    def inputs_of(self, layer: int) -> Found:
        """The inputs of the products of a layer, or of the output matrix for the number of layers. Ask in ascending order.

        Raises:
            GenerationError: for activations that are not finite.
            FormatError: for stored moments that are damaged, or made from something else.
        """
        found = None if self._stored is None else self._stored.read(layer)
        if found is not None:
            return found
        if not self._hidden:
            self._hidden = [self.model.embed(chunk) for chunk in self.chunks]
        while self._done < min(layer, self.layers):
            self._run_layer(self._done)
            self._collector.take()
        if layer < self.layers:
            self._run_layer(layer)
        else:
            self._run_output()
        found = self._collector.take()
        if self._stored is not None:
            self._stored.write(layer, found)
        return found

    @np.errstate(all="ignore")
    def _run_layer(self, layer: int) -> None:
        """Send all chunks through a layer."""
        self._collector.paused = False
        advance = self._begin(f"layer {layer + 1} of {self.layers}", len(self._hidden))
        for number, hidden in enumerate(self._hidden):
            self._collector.holding = self.is_held_out(number)
            self._cache.rewind(0)
            self.model.run_layer(layer, hidden, self._cache)
            advance(1)
        self._collector.paused = True
        self._done = layer + 1

    @np.errstate(all="ignore")
    def _run_output(self) -> None:
        """Collect the inputs of the output matrix. Its product is needed for a part of the text only, for a perplexity."""
        self._warn_of_strange_text()
        self._collector.paused = False
        for number, hidden in enumerate(self._hidden):
            self._collector.holding = self.is_held_out(number)
            self._collector(self.output, self.model.normed(hidden), None)
        self._collector.paused = True

    def _warn_of_strange_text(self) -> None:
        """Warn of a text that the model predicts badly: it stands for other inputs than the model will get."""
        if not self.model.sizes.causal:
            return
        losses, every = [], -(-len(self.chunks) // _TRIED_CHUNKS)
        for chunk, hidden in zip(self.chunks[::every], self._hidden[::every], strict=True):
            half = len(chunk) // 2
            logits = self.model.logits(hidden[half : half + _TRIED_TOKENS])
            expected = np.array(chunk[half + 1 : half + 1 + len(logits)], np.int64)
            loss, top = np.empty(len(logits)), np.empty(len(logits), np.int32)
            score(logits, expected, loss, top)
            losses.append(loss)
        perplexity = float(np.exp(min(np.concatenate(losses).mean(), 99)))
        if perplexity > STRANGE:
            what = "it is unlike what this model was trained on; --calibration gives another"
            warn(f"the perplexity of the calibration text is {perplexity:,.0f}: {what}")

    def is_held_out(self, chunk: int) -> bool:
        """Whether a chunk is held out: one of `HELD_OUT`, and the last of a few."""
        few = len(self.chunks) <= HELD_OUT // 2
        return chunk == len(self.chunks) - 1 if few else chunk % HELD_OUT == HELD_OUT // 2

    def _call_kernels(self, context: int) -> None:
        self.model.call_kernels_of_hidden(context, "f32")
        x = np.zeros((context, MULTIPLE), np.float32)
        add_upper_products(x, x, np.zeros((MULTIPLE, MULTIPLE), np.float32))
