"""The tensors of a file as a forward pass needs them: checked as they are taken, and left in the file.

A matrix is a view of the memory map and is multiplied as stored; vectors are dequantized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType
from quantcli.core.errors import ModelError, UnsupportedError
from quantcli.kernels.elementwise import layer_norm, rms_norm
from quantcli.kernels.products.matmul import Multiply, multiplier
from quantcli.kernels.rows import dequantize
from quantcli.runner.model_file import ModelFile
from quantcli.runner.quantize_on_load import can_pack, pack
from quantcli.tensors.tensor import TensorInfo

Floats = NDArray[np.float32]


class Observer(Protocol):
    """Sees the inputs of every matrix product of a forward pass, before the product is computed."""

    def __call__(self, tensor: str, rows: Floats, index: int | None, /) -> None:
        """`rows`, float32 `(tokens, columns)`, are about to be multiplied by `tensor`.

        `index` says by which matrix of a stack: the expert, whose tokens alone the rows are, or the head. It is None for a
        tensor that is one matrix. Whoever keeps the rows copies them: they may be overwritten.
        """


@dataclass(frozen=True, eq=False, slots=True)
class Matrix:
    """The tensor `name`: a weight matrix in the file, uint8 `(rows, row_bytes)`, and its bias where it has one."""

    name: str
    weights: NDArray[np.uint8]
    type: BlockType
    columns: int
    multiply: Multiply
    bias: Floats | None

    def __call__(self, x: Floats) -> Floats:
        """x @ weights.T + bias: contiguous `(tokens, columns)` to `(tokens, rows)`."""
        out = np.empty((x.shape[0], self.weights.shape[0]), np.float32)
        self.multiply(self.weights, x, out)
        if self.bias is not None:
            out += self.bias
        return out


@dataclass(frozen=True, eq=False, slots=True)
class Stack:
    """The tensor `name`: matrices of one shape, one after another, with a bias for each where they have them."""

    name: str
    weights: NDArray[np.uint8]
    type: BlockType
    rows: int
    columns: int
    multiply: Multiply
    biases: Floats | None

    def __call__(self, index: int, x: Floats) -> Floats:
        """x @ weights[index].T + bias[index]: contiguous `(tokens, columns)` to `(tokens, rows)`."""
        out = np.empty((x.shape[0], self.rows), np.float32)
        self.multiply(self.weights[index * self.rows : (index + 1) * self.rows], x, out)
        if self.biases is not None:
            out += self.biases[index]
        return out


@dataclass(frozen=True, eq=False, slots=True)
class ObservedMatrix(Matrix):
    """A matrix whose inputs are shown to an observer."""

    observer: Observer

    def __call__(self, x: Floats) -> Floats:
        """As the matrix."""
        self.observer(self.name, x, None)
        return Matrix.__call__(self, x)


@dataclass(frozen=True, eq=False, slots=True)
class ObservedStack(Stack):
    """A stack whose inputs are shown to an observer."""

    observer: Observer

    def __call__(self, index: int, x: Floats) -> Floats:
        """As the stack."""
        self.observer(self.name, x, index)
        return Stack.__call__(self, index, x)


@dataclass(frozen=True, eq=False, slots=True)
class Norm:
    """A norm of rows by their mean square, or, where it is `centred`, by their variance."""

    weight: Floats
    bias: Floats | None
    epsilon: np.float32
    centred: bool

    def __call__(self, x: Floats) -> Floats:
        """The rows of `(tokens, n)`, normed, in a new array."""
        out = np.empty_like(x)
        if self.centred:
            layer_norm(x, self.weight, self.bias, self.epsilon, out)
            return out
        rms_norm(x, self.weight, self.epsilon, out)
        if self.bias is not None:
            out += self.bias
        return out


@dataclass(frozen=True)
class Weights:
    """The tensors of a file. Every method raises ModelError for a tensor that is missing or of another shape than expected,
    and UnsupportedError for a type that nothing multiplies by.

    Matrices of plain numbers become blocks of the type `packing`, where there is one and their rows fit; `saved` counts the
    bytes that makes fewer. `observer` sees the inputs of every product with the matrices.
    """

    file: ModelFile
    packing: BlockType | None = None
    observer: Observer | None = None
    taken: set[str] = field(default_factory=set)
    saved: dict[str, int] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether the file has a tensor of this full name."""
        return name in self.file.tensors

    def matrix(self, name: str, rows: int | None, columns: int, biases: Sequence[str] = (), packs: bool = True) -> Matrix:
        """`NAME.weight`, of `rows` rows (None: any number) of `columns`, with `NAME.bias` where there is one.

        `biases`: names of other vectors that together are the bias, where the file has them instead. Without `packs` it
        stays as it is in the file.
        """
        tensor = self._tensor(f"{name}.weight")
        if len(tensor.shape) != 2 or tensor.shape[1] != columns or rows not in (None, tensor.shape[0]):
            self._refuse(tensor, (rows, columns))
        bias = self.optional_vector(f"{name}.bias", tensor.shape[0])
        if bias is None and biases and all(self.has(part) for part in biases):
            bias = np.concatenate([self.vector(part, None) for part in biases])
            if len(bias) != tensor.shape[0]:
                found = f"{', '.join(biases)} have {len(bias)} numbers"
                raise ModelError(f"{self.file.path}: {found}, expected {tensor.shape[0]}")
        data, kind = self._data(tensor, packs)
        fields = (tensor.name, data, kind, columns, self._multiplier(tensor, kind), bias)
        return Matrix(*fields) if self.observer is None else ObservedMatrix(*fields, self.observer)

    def stack(self, name: str, count: int, rows: int | None, columns: int) -> Stack:
        """`NAME.weight`, `count` matrices of `rows` rows (None: any number) of `columns`, with `NAME.bias` as `matrix`."""
        tensor = self._tensor(f"{name}.weight")
        shape = tensor.shape
        if len(shape) != 3 or shape[0] != count or shape[2] != columns or rows not in (None, shape[1]):
            self._refuse(tensor, (count, rows, columns))
        biases = self.optional_vector(f"{name}.bias", count * shape[1])
        biases = None if biases is None else biases.reshape(count, shape[1])
        data, kind = self._data(tensor, True)
        fields = (tensor.name, data, kind, shape[1], columns, self._multiplier(tensor, kind), biases)
        return Stack(*fields) if self.observer is None else ObservedStack(*fields, self.observer)

    def optional_vector(self, name: str, length: int | None) -> Floats | None:
        """As `vector`, None where the file has no such tensor."""
        return self.vector(name, length) if self.has(name) else None

    def vector(self, name: str, length: int | None) -> Floats:
        """All numbers of the tensor `name`, `length` of them (None: any number), in float32."""
        tensor = self._tensor(name)
        if length is not None and tensor.size != length:
            self._refuse(tensor, (length,))
        try:
            return dequantize(self.file.map(tensor), tensor.type).reshape(-1)
        except ValueError as error:
            raise self._unsupported(tensor, error) from error

    def vector_or_zeros(self, name: str, length: int) -> Floats:
        """As `vector`, zeros where the file has no such tensor."""
        return self.vector(name, length) if self.has(name) else np.zeros(length, np.float32)

    def unused(self) -> list[str]:
        """Names of the tensors that nothing took."""
        return [name for name in self.file.tensors if name not in self.taken]

    def _data(self, tensor: TensorInfo, packs: bool) -> tuple[NDArray[np.uint8], BlockType]:
        """The rows of a tensor, and their type."""
        data, packing = self.file.map(tensor), self.packing
        if packing is None or not packs or not can_pack(tensor.type, tensor.row_length, packing):
            return data, tensor.type
        packed = pack(data, tensor.type, packing)
        self.saved[tensor.name] = tensor.nbytes - packed.nbytes
        return packed, packing

    def _multiplier(self, tensor: TensorInfo, kind: BlockType) -> Multiply:
        try:
            return multiplier(kind)
        except ValueError as error:
            raise self._unsupported(tensor, error) from error

    def _unsupported(self, tensor: TensorInfo, error: ValueError) -> UnsupportedError:
        return UnsupportedError(f"{self.file.path}: tensor {tensor.name!r} cannot be run: {error}")

    def _tensor(self, name: str) -> TensorInfo:
        tensor = self.file.tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self.file.path}: the file has no tensor {name!r}, and its architecture needs one")
        self.taken.add(name)
        return tensor

    def _refuse(self, tensor: TensorInfo, expected: tuple[int | None, ...]) -> None:
        shown = ", ".join("any" if extent is None else str(extent) for extent in expected)
        raise ModelError(f"{self.file.path}: tensor {tensor.name!r} has shape {tensor.shape}, expected ({shown})")


@dataclass(frozen=True)
class Norms:
    """The norms of a model, of one kind."""

    weights: Weights
    epsilon: float
    centred: bool
    weighed: bool = True

    def read(self, names: Sequence[str], width: int, prefix: str = "", optional: bool = False) -> Norm | None:
        """The norm of the first of these names that the file has, of `width` numbers; None for no names, and where it is
        `optional` for a file with none of them.

        Raises:
            ModelError: if the file has none of them, or one of another size.
        """
        if not names:
            return None
        name = prefix + self.choose(names, prefix)
        if optional and not self.weights.has(f"{name}.weight"):
            return None
        weight = self.weights.vector(f"{name}.weight", width) if self.weighed else np.ones(width, np.float32)
        return self.make(weight, self.weights.optional_vector(f"{name}.bias", width))

    def choose(self, names: Sequence[str], prefix: str = "") -> str:
        """The first of these names that the file has, or the last."""
        return next((name for name in names if self.weights.has(f"{prefix}{name}.weight")), names[-1])

    def make(self, weight: Floats, bias: Floats | None = None) -> Norm:
        """A norm of this kind."""
        if self.centred and bias is None:
            bias = np.zeros_like(weight)
        return Norm(weight, bias, np.float32(self.epsilon), self.centred)
