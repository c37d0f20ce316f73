"""Lazy tensors with the low-rank update of an adapter added, row by row as they are read.

The arithmetic is that of peft's merge. The product `B A` is computed in float32, added to the weight, and the sum is
rounded once to the weight's own type.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.architectures.transforms import as_float32, transpose
from quantcli.core.block_types import BlockType
from quantcli.formats.adapters import LowRank
from quantcli.tensors.array_cache import ArrayCache
from quantcli.tensors.bfloat16 import float32_to_bfloat16
from quantcli.tensors.tensor import Tensor

KEPT_BYTES: Final = 1 << 26
"""How much of the adapters' matrices is kept in memory: those of the few tensors that threads work on at a time."""


@dataclass(frozen=True)
class Merged(Tensor):
    """A weight or bias with an adapter's update added."""

    source: Tensor
    delta: Product | Vector

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`. Needs about three times the memory of the rows in float32."""
        values = np.empty((stop - start, self.row_length), np.float32)
        as_float32(self.source).read(start, stop, values.view(np.uint8))
        with np.errstate(all="ignore"):  # NaN and infinity are reported when the weights are quantized
            self.delta.add(start, stop, values, self.type)
            _encode(values, out.view(self.type.layout))


@dataclass(frozen=True)
class _Rounded(Tensor):
    """An array rounded to a type."""

    values: NDArray[np.float32]

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        _encode(self.values[start:stop], out.view(self.type.layout))


def _encode(values: NDArray[np.float32], out: NDArray[Any]) -> None:
    """Round to nearest, ties to even, as torch does."""
    if out.dtype in (np.float32, np.float16):
        out[...] = values
    else:
        out[...] = float32_to_bfloat16(values)


def _floats(tensor: Tensor) -> NDArray[np.float32]:
    loaded: NDArray[np.float32] = as_float32(tensor).load()
    return loaded


@dataclass(frozen=True, eq=False)
class Product:
    """The low-rank update `scaling * B A`. Of the left factor only the needed rows are read; the right one is cached."""

    pair: LowRank
    transposed: bool
    scaling: float
    cache: ArrayCache

    def add(self, start: int, stop: int, values: NDArray[np.float32], type: BlockType) -> None:
        """Add the rows `start:stop` to `values`, float32 `(stop - start, row length)`, which will be rounded to `type`."""
        a, b = self.pair.a, self.pair.b
        left = np.empty((stop - start, self.pair.rank), np.float32)
        as_float32(transpose(a) if self.transposed else b).read(start, stop, left.view(np.uint8))
        held = b if self.transposed else a
        right = self.cache.get(held.name, partial(_floats, held))
        right = right.T if self.transposed else right
        product = left @ right
        product *= np.float32(self.scaling)
        if self.pair.embedding:  # peft rounds the product itself only for embeddings
            product = _floats(_Rounded("", product.shape, type, product))
        values += product
        if self.pair.magnitude is not None:
            lengths = np.sqrt(np.einsum("ij,ij->i", values, values))
            magnitudes = _floats(self.pair.magnitude).reshape(-1)[start:stop]
            values *= (magnitudes / lengths)[:, np.newaxis]


@dataclass(frozen=True, eq=False)
class Vector:
    """A bias that is added to a bias."""

    bias: Tensor
    scaling: float

    def add(self, start: int, stop: int, values: NDArray[np.float32], type: BlockType) -> None:
        """Add the bias to `values`, float32 `(1, length)`."""
        values += _floats(self.bias) * np.float32(self.scaling)
