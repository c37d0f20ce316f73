"""Embeddings: a text as one vector, made of what a model makes of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import GenerationError, UnsupportedError, UsageError
from quantcli.runner.cache import Cache
from quantcli.runner.load import LoadedModel
from quantcli.runner.text.sampling import DIVERGED

Floats = NDArray[np.float32]

POOLINGS: Final[Mapping[str, Callable[[Floats], Floats]]] = MappingProxyType(
    {
        "none": lambda rows: rows,
        "mean": lambda rows: rows.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32),
        "cls": lambda rows: rows[:1],
        "last": lambda rows: rows[-1:],
    }
)
"""How the rows of a text's tokens become one: not at all, their mean, the first or the last. In the order of the values of
`{arch}.pooling_type`."""

DEFAULT_POOLING: Final = "mean"
"""Where neither the user nor the file says."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """A text's tokens and its rows: float32 `(1, width)`, or `(tokens, width)` where they are not pooled."""

    tokens: Sequence[int]
    rows: Floats


def pooling_of(loaded: LoadedModel) -> str:
    """How the file says that tokens are pooled.

    Raises:
        UnsupportedError: for a reranker, or a number that means nothing.
    """
    key = f"{loaded.model.sizes.architecture}.pooling_type"
    if key not in loaded.metadata:
        return DEFAULT_POOLING
    value, names = loaded.metadata[key].value, list(POOLINGS)
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UnsupportedError(
            f"{loaded.path}: {key} is {value}, and only {', '.join(names)} are known", hint="--pooling says another"
        )
    return names[value]


def embed(
    loaded: LoadedModel, texts: Sequence[str], *, pooling: str | None = None, normalize: bool = True,
    context: int | None = None,
) -> Iterator[Embedding]:  # fmt: skip
    """The embeddings of texts, one by one, of length 1 where they are to `normalize`.

    `pooling` is a name in `POOLINGS` (None: as the file says), `context` how many tokens a text may have (None: as many as
    the model was trained on).

    Raises:
        UsageError: for a pooling that is none.
        UnsupportedError: for a file's own pooling that is not known.
        GenerationError: for a text of no tokens or too many, or an output that is not a number.
        ModelError: for a file without a tokenizer.
    """
    name = pooling_of(loaded) if pooling is None else pooling
    if name not in POOLINGS:
        raise UsageError(f"unknown pooling {name!r}, expected one of {', '.join(POOLINGS)}")
    model, limit = loaded.model, context or loaded.model.sizes.context
    for text in texts:
        tokens = loaded.tokenizer.encode(text, parse_special=True)
        if not tokens:
            raise GenerationError("the text is empty")
        if len(tokens) > limit:
            raise GenerationError(f"the text has {len(tokens)} tokens, and the context is {limit}")
        hidden = model.hidden(tokens, Cache(model.sizes, len(tokens), "f32"))
        if not np.isfinite(hidden).all():
            raise GenerationError(DIVERGED)
        rows = POOLINGS[name](hidden)
        yield Embedding(tokens, _normalized(rows) if normalize else rows)


def _normalized(rows: Floats) -> Floats:
    """Rows divided by their lengths; rows of zeros stay."""
    lengths = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    result: Floats = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return result
