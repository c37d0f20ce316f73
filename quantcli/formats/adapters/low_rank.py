"""What an adapter is, whatever library has written it: pairs of matrices for some weights of a model, and whole weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from quantcli.tensors.tensor import FileTensor, Tensor, TensorInfo

LARGEST: Final = 3.4028234663852886e38
"""What float32 holds, in which scalings are computed with."""


@dataclass(frozen=True)
class LowRank(TensorInfo):
    """What an adapter adds to the weight `name`: `scaling * b @ a`, of `shape`.

    `a` is `(rank, in)` and `b` `(out, rank)`; in an embedding, and where the weight is stored as `(in, out)`, their product
    is the transpose of the weight, which `transposed` says. For the latter it is the configuration's word, which has one
    for all layers of a model. DoRA brings every row to the length that `magnitude` gives.
    """

    a: Tensor
    b: Tensor
    scaling: float
    transposed: bool = False
    embedding: bool = False
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    """Added, scaled as well, to the bias beside the weight."""

    @property
    def module(self) -> str:
        """The layer the weight belongs to."""
        return self.name.removesuffix(".weight")

    @property
    def rank(self) -> int:
        """The rows of `a`."""
        return self.a.shape[-2]


@dataclass(frozen=True)
class Adapter:
    """An adapter of a model.

    `pairs` are what is added to weights, `whole` the weights and biases that are replaced, both by their names in the base
    model; `frozen` are copies of weights of the base model. Close it, or use it in a `with`, to give back the open files.
    """

    path: Path
    config: Mapping[str, Any] = field(repr=False)
    pairs: Mapping[str, LowRank] = field(repr=False)
    whole: Mapping[str, Tensor] = field(repr=False)
    frozen: Mapping[str, Tensor] = field(repr=False)
    alpha: float
    """From which, with the rank, scalings follow where nothing else is said."""

    def close(self) -> None:
        """Give back the open files. A tensor that is read later opens its file again."""
        for file in {tensor.file for tensor in self.tensors() if isinstance(tensor, FileTensor)}:
            file.close()

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of its file."""
        for pair in self.pairs.values():
            yield from (tensor for tensor in (pair.a, pair.b, pair.magnitude, pair.bias) if tensor is not None)
        yield from self.whole.values()
        yield from self.frozen.values()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def number(value: Any) -> float | None:
    """A setting that is a finite number of JSON, else None."""
    finite = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    return value if finite else None
