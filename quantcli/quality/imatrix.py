"""Collects an importance matrix: for each column of a tensor, the sum of the squared activations it is multiplied with.

What is collected, and how text is cut into chunks, is that of llama.cpp's `tools/imatrix/imatrix.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import GenerationError, UsageError
from quantcli.formats.imatrix_sums import ImatrixSums, Sums, merge_sums
from quantcli.quality.chunks import cut
from quantcli.runner.cache import Cache
from quantcli.runner.model import Model
from quantcli.runner.model_file import ModelFile
from quantcli.runner.text.tokenizer import Tokenizer

SHORTEST_CONTEXT: Final = 16
"""The smallest chunk: llama.cpp collects nothing from a batch of fewer tokens."""

OUTPUT: Final = "output.weight"

Doubles = NDArray[np.float64]


@dataclass(eq=False)
class Collector:
    """An observer (`runner.weights.Observer`) that sums the squared inputs of the matrix products of layers.

    shapes   the model's tensors by name. Experts are stacked in the tensors named `*_exps`: each has a count of its own
    squares  tensor name -> float64 (matrices, n)
    counts   tensor name -> int64 (matrices,) for experts, else (1,)
    """

    shapes: dict[str, tuple[int, ...]]
    squares: dict[str, Doubles] = field(default_factory=dict)
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    @classmethod
    def of(cls, file: ModelFile) -> Collector:
        """A collector for the tensors of a model file."""
        return cls({name: tensor.shape for name, tensor in file.tensors.items()})

    def __call__(self, tensor: str, rows: NDArray[np.float32], index: int | None, /) -> None:
        """See `runner.weights.Observer`."""
        if tensor.startswith("blk."):
            self.add(tensor, rows, index)

    def add(self, tensor: str, rows: NDArray[np.float32], index: int | None) -> None:
        """Add inputs of a tensor."""
        if tensor not in self.squares:
            matrices = 1 if index is None else self.shapes[tensor][0]
            self.squares[tensor] = np.zeros((matrices, rows.shape[1]))
            self.counts[tensor] = np.zeros(matrices if "_exps." in tensor else 1, np.int64)
        matrix, counts = index or 0, self.counts[tensor]
        self.squares[tensor][matrix] += np.einsum("tc,tc->c", rows, rows)
        if matrix < len(counts):
            counts[matrix] += len(rows)

    def check(self) -> None:
        """Check that all sums are finite.

        Raises:
            GenerationError: naming the first tensor whose inputs are not.
        """
        for name, squares in self.squares.items():
            if not np.isfinite(squares).all():
                raise GenerationError(f"{name}: the sums of its squared inputs are not finite")

    def result(self, datasets: Sequence[str], chunks: int, chunk_size: int) -> ImatrixSums:
        """The importance matrix of the texts `datasets`."""
        entries = {
            name: Sums(squares.reshape(len(self.counts[name]), -1).astype(np.float32), self.counts[name].astype(np.float32))
            for name, squares in self.squares.items()
        }
        return ImatrixSums(tuple(datasets), chunks, chunk_size, entries)


def cut_texts(
    tokenizer: Tokenizer, texts: Sequence[tuple[str, str]], context: int, limit: int | None, *, parse_special: bool = False
) -> list[list[int]]:
    """The chunks of texts, given with their names, `context` tokens each and at most `limit` in all, of each text equally
    many. What is left of a text is ignored.

    Raises:
        UsageError: for a context of fewer than `SHORTEST_CONTEXT` tokens.
        GenerationError: for a text of less than two chunks.
    """
    if context < SHORTEST_CONTEXT:
        raise UsageError(f"a context of {context} tokens is too short, expected {SHORTEST_CONTEXT} or more")
    need = f"chunks of {context} need"
    by_text = [
        cut(
            tokenizer, text, context, limit,
            name=f"{name}: the text", need=need, shortest=SHORTEST_CONTEXT, parse_special=parse_special,
        )
        for name, text in texts
    ]  # fmt: skip
    shares = even_shares([len(chunks) for chunks in by_text], limit)
    return [chunk for chunks, share in zip(by_text, shares, strict=True) for chunk in chunks[:share]]


def even_shares(counts: Sequence[int], limit: int | None) -> list[int]:
    """How many of each of some lists are taken, at most `limit` in all: equally many, or all of those that have fewer."""
    shares = list(counts)
    room = sum(counts) if limit is None else limit
    for left, place in zip(range(len(counts), 0, -1), sorted(range(len(counts)), key=counts.__getitem__), strict=True):
        shares[place] = min(counts[place], room // left)
        room -= shares[place]
    return shares


def digest(chunks: Sequence[Sequence[int]]) -> str:
    """The SHA-256 of the tokens of chunks, in hexadecimal digits."""
    return sha256(np.array(chunks, "<i4").tobytes()).hexdigest()


def collect(
    model: Model,
    collector: Collector,
    chunks: Sequence[Sequence[int]],
    datasets: Sequence[str] = (),
    *,
    process_output: bool = False,
    before: ImatrixSums | None = None,
    cache_type: str = "f32",
    advance: Callable[[int, Callable[[], ImatrixSums]], None] = lambda done, so_far: None,
) -> ImatrixSums:
    """Run a model on chunks of tokens and collect its importance matrix.

    Args:
        model: the model, with `collector` as its observer.
        collector: gets the activations.
        chunks: the tokens, in chunks of one length.
        datasets: the names of the texts they are from.
        process_output: collect for the output matrix, too.
        before: an interrupted importance matrix of the same texts. Its chunks are not run again.
        cache_type: the type of the KV cache.
        advance: called after each chunk with the number done and a function that gives the importance matrix so far.

    Raises:
        GenerationError: for activations that are not finite.
        FormatError: if `before` is of another model.
    """
    context = len(chunks[0])
    done = skipped = 0 if before is None else before.chunks
    cache = Cache(model.sizes, context, cache_type)

    def so_far() -> ImatrixSums:
        if before is None:
            return collector.result(datasets, done, context)
        own = collector.result([], done - skipped, context)
        return merge_sums([("the interrupted importance matrix", before), ("this run", own)])

    for chunk in chunks[skipped:]:
        cache.rewind(0)
        hidden = model.hidden(chunk, cache)
        if process_output and OUTPUT in collector.shapes:
            collector.add(OUTPUT, hidden, None)
        collector.check()
        done += 1
        advance(done, so_far)
    return so_far()
