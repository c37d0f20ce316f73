"""LoRA adapters, independent of the library that saved them: low-rank pairs, and fully trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from quantcli.tensors.files import DataFile
from quantcli.tensors.tensor import Tensor, TensorInfo, files_of

LARGEST: Final = 3.4028234663852886e38
"""The largest float32, the type of scalings."""


@dataclass(frozen=True)
class LowRank(TensorInfo):
    """The low-rank update of the weight `name`: `scaling * b @ a`.

    shape        that of the weight
    a            (rank, in), the matrix A
    b            (out, rank), the matrix B
    transposed   whether `b @ a` is the transpose of the update: for embeddings, and for weights stored as (in, out). For
                 the latter it is the configuration's `fan_in_fan_out`, which is one value for all layers.
    magnitude    `out` values, DoRA's norm of each row of the adapted weight (m)
    """

    a: Tensor
    b: Tensor
    scaling: float
    transposed: bool = False
    embedding: bool = False
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    """`scaling * bias` is added to the bias of the layer."""

    @property
    def module(self) -> str:
        """The name of the layer that the weight belongs to."""
        return self.name.removesuffix(".weight")

    @property
    def rank(self) -> int:
        """The rank of the update (r)."""
        return self.a.shape[-2]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter. Names are those of the base model.

    pairs    low-rank updates by the name of the weight
    whole    fully trained weights and biases, which replace those of the base model
    frozen   copies of weights of the base model

    Close it, or use it in a `with`, to close its files.
    """

    path: Path
    config: Mapping[str, Any] = field(repr=False)
    pairs: Mapping[str, LowRank] = field(repr=False)
    whole: Mapping[str, Tensor] = field(repr=False)
    frozen: Mapping[str, Tensor] = field(repr=False)
    alpha: float
    """The default alpha, from which scalings are computed as `alpha / rank`."""

    def close(self) -> None:
        """Close the files. A tensor that is read later opens its file again."""
        for file in self.files():
            file.close()

    def files(self) -> tuple[DataFile, ...]:
        """The files of the tensors."""
        return files_of(self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of the adapter's file."""
        for pair in self.pairs.values():
            yield from (tensor for tensor in (pair.a, pair.b, pair.magnitude, pair.bias) if tensor is not None)
        yield from self.whole.values()
        yield from self.frozen.values()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def number(value: Any) -> float | None:
    """`value` if it is a finite JSON number, else None."""
    finite = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    return value if finite else None
