"""Text embeddings: the hidden states of a text's tokens, pooled to one vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import GenerationError, UnsupportedError, UsageError
from quantcli.core.listing import counted
from quantcli.runner.cache import Cache
from quantcli.runner.load import LoadedModel
from quantcli.runner.pooling import POOLINGS
from quantcli.runner.text.sampling import diverged

Floats = NDArray[np.float32]

DEFAULT_POOLING: Final = "mean"
"""The pooling where neither the user nor the file sets one."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """A text's tokens and its embedding: float32 `(1, width)`, or `(tokens, width)` without pooling."""

    tokens: Sequence[int]
    rows: Floats


def is_embedder(loaded: LoadedModel) -> bool:
    """Whether a model is made for embeddings: an encoder, or a decoder whose file sets a pooling, and not `none`."""
    key = _pooling_key(loaded)
    return not loaded.model.sizes.causal or (key in loaded.metadata and loaded.metadata[key].value != 0)


def _pooling_key(loaded: LoadedModel) -> str:
    return f"{loaded.model.sizes.architecture}.pooling_type"


def pooling_of(loaded: LoadedModel) -> str:
    """The pooling that the file's metadata set.

    Raises:
        UnsupportedError: for a reranker, or an unknown value.
    """
    key = _pooling_key(loaded)
    if key not in loaded.metadata:
        return DEFAULT_POOLING
    value, names = loaded.metadata[key].value, list(POOLINGS)
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UnsupportedError(
            f"{loaded.path}: {key} is {value}, expected one of {', '.join(names)}", hint="choose another with --pooling"
        )
    return names[value]


def embed(
    loaded: LoadedModel, texts: Sequence[str], *, pooling: str | None = None, normalize: bool = True,
    context: int | None = None,
) -> Iterator[Embedding]:  # fmt: skip
    """The embeddings of texts, one by one. With `normalize` they have an L2 norm of 1.

    `pooling` is a name in `POOLINGS` (None: the file's). `context` is the most tokens of a text (None: the trained context
    length).

    Raises:
        UsageError: for an unknown pooling.
        UnsupportedError: for an unknown pooling in the file.
        GenerationError: for a text with no tokens or too many, or an output that is not finite.
        ModelError: for a file without a tokenizer.
    """
    name = pooling_of(loaded) if pooling is None else pooling
    if name not in POOLINGS:
        raise UsageError(f"unknown pooling {name!r}, expected one of {', '.join(POOLINGS)}")
    limit = context or loaded.model.sizes.context
    for text in texts:
        tokens = loaded.tokenizer.encode(text, parse_special=True)
        if not tokens:
            raise GenerationError("the text is empty")
        if len(tokens) > limit:
            raise GenerationError(f"the text has {counted(len(tokens), 'token')}, and the context is {limit}")
        rows = pooled(loaded, tokens, name)
        yield Embedding(tokens, _normalized(rows) if normalize else rows)


def pooled(loaded: LoadedModel, tokens: Sequence[int], pooling: str) -> Floats:
    """The hidden states of tokens, pooled: float32 `(1, width)`, or `(tokens, width)` for the pooling `none`.

    Raises:
        GenerationError: for an output that is not finite, and as `Model.hidden`.
    """
    model = loaded.model
    hidden = model.hidden(tokens, Cache(model.sizes, len(tokens), "f32"))
    if not np.isfinite(hidden).all():
        raise diverged()
    return POOLINGS[pooling](hidden)


def _normalized(rows: Floats) -> Floats:
    """Divide rows by their L2 norms. Rows of zeros stay."""
    lengths = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    result: Floats = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return result
