"""The weights of a model: tensors looked up by name, with their shapes checked.

A weight matrix stays quantized: it is a view of the memory-mapped file. Vectors (norm weights, biases) are dequantized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType
from quantcli.core.errors import ModelError, UnsupportedError
from quantcli.kernels.compilation import tracing
from quantcli.kernels.elementwise import layer_norm, rms_norm
from quantcli.kernels.products.matmul import Multiply, multiplier
from quantcli.kernels.rows import dequantize
from quantcli.runner.model_file import ModelFile
from quantcli.runner.quantize_on_load import can_quantize, quantize_rows
from quantcli.tensors.tensor import TensorInfo

Floats = NDArray[np.float32]


class Observer(Protocol):
    """Called with the input activations of every matrix multiplication of a forward pass, before it is computed."""

    def __call__(self, tensor: str, rows: Floats, index: int | None, /) -> None:
        """`rows`, float32 `(tokens, columns)`, are about to be multiplied by `tensor`.

        `index` is the expert or the head of a stacked tensor, and None for a tensor that is one matrix. For an expert,
        `rows` holds only the tokens routed to it. An observer that keeps the rows must copy them: they may be overwritten.
        """


@dataclass(frozen=True, eq=False, slots=True)
class Matrix:
    """A linear layer: the weight matrix `name` as stored, uint8 `(rows, row_bytes)`, and its optional bias."""

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
    """The stacked tensor `name`: one weight matrix per expert or head, all of one shape, each with an optional bias."""

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
    """A matrix that calls an observer with its inputs."""

    observer: Observer

    def __call__(self, x: Floats) -> Floats:
        """Call the observer, then multiply as `Matrix`."""
        if not tracing():
            self.observer(self.name, x, None)
        return Matrix.__call__(self, x)


@dataclass(frozen=True, eq=False, slots=True)
class ObservedStack(Stack):
    """A stack that calls an observer with its inputs."""

    observer: Observer

    def __call__(self, index: int, x: Floats) -> Floats:
        """Call the observer, then multiply as `Stack`."""
        if not tracing():
            self.observer(self.name, x, index)
        return Stack.__call__(self, index, x)


@dataclass(frozen=True, eq=False, slots=True)
class Norm:
    """RMSNorm, or LayerNorm where `centred`."""

    weight: Floats
    bias: Floats | None
    epsilon: np.float32
    centred: bool

    def __call__(self, x: Floats) -> Floats:
        """Normalize each row of `(tokens, n)`, into a new array."""
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
    """The tensors of a file. Every method raises ModelError for a tensor that is missing or has the wrong shape, and
    UnsupportedError for a tensor type that is not supported.

    With `packing`, float matrices are quantized to that type, where the row length is a multiple of its block length.
    `saved` has the bytes saved by that, by tensor. `observer` is called with the inputs of every matrix multiplication.
    `taken` has the names of the tensors that were read.
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
        """The matrix `NAME.weight`, `(rows, columns)` (None: any number of rows), with `NAME.bias` where the file has it.

        `biases` names vectors that are concatenated to the bias where the file has no `NAME.bias`. Without `packs` the
        matrix is never quantized on load.
        """
        tensor = self._tensor(f"{name}.weight")
        # GGUF does not tell a matrix of one row from a vector.
        shape = (1, *tensor.shape) if len(tensor.shape) == 1 else tensor.shape
        if len(shape) != 2 or shape[1] != columns or rows not in (None, shape[0]):
            self._refuse(tensor, (rows, columns))
        bias = self.optional_vector(f"{name}.bias", shape[0])
        if bias is None and biases and all(self.has(part) for part in biases):
            bias = np.concatenate([self.vector(part, None) for part in biases])
            if len(bias) != shape[0]:
                found = f"{', '.join(biases)} have {len(bias)} numbers"
                raise ModelError(f"{self.file.path}: {found}, expected {shape[0]}")
        data, kind = self._data(tensor, packs)
        fields = (tensor.name, data, kind, columns, self._multiplier(tensor, kind), bias)
        return Matrix(*fields) if self.observer is None else ObservedMatrix(*fields, self.observer)

    def stack(self, name: str, count: int, rows: int | None, columns: int) -> Stack:
        """The stacked tensor `NAME.weight`, `(count, rows, columns)` (None: any number of rows), and `NAME.bias` if any."""
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
        """As `vector`, but None where the file has no such tensor."""
        return self.vector(name, length) if self.has(name) else None

    def vector(self, name: str, length: int | None) -> Floats:
        """The tensor `name`, dequantized and flattened to float32 `(length,)` (None: any length)."""
        tensor = self._tensor(name)
        if length is not None and tensor.size != length:
            self._refuse(tensor, (length,))
        try:
            return dequantize(self.file.map(tensor), tensor.type).reshape(-1)
        except ValueError as error:
            raise self._unsupported(tensor, error) from error

    def vector_or_zeros(self, name: str, length: int) -> Floats:
        """As `vector`, but zeros where the file has no such tensor."""
        return self.vector(name, length) if self.has(name) else np.zeros(length, np.float32)

    def unused(self) -> list[str]:
        """Names of the tensors that were never read."""
        return [name for name in self.file.tensors if name not in self.taken]

    def _data(self, tensor: TensorInfo, packs: bool) -> tuple[NDArray[np.uint8], BlockType]:
        """The stored rows of a tensor and their type, after quantization on load."""
        data, packing = self.file.map(tensor), self.packing
        if packing is None or not packs or not can_quantize(tensor.type, tensor.row_length, packing):
            return data, tensor.type
        packed = quantize_rows(data, tensor.type, packing)
        packed.flags.writeable = False  # as mapped weights are, so that both have the same kernels
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
            raise ModelError(f"{self.file.path}: the file lacks the tensor {name!r}, which its architecture requires")
        self.taken.add(name)
        return tensor

    def _refuse(self, tensor: TensorInfo, expected: tuple[int | None, ...]) -> None:
        shown = ", ".join("any" if extent is None else str(extent) for extent in expected)
        raise ModelError(f"{self.file.path}: tensor {tensor.name!r} has shape {tensor.shape}, expected ({shown})")


@dataclass(frozen=True)
class Norms:
    """Reads the normalization layers of a model. All are of one kind: LayerNorm where `centred`, else RMSNorm.

    Without `weighed` they have no learned weight.
    """

    weights: Weights
    epsilon: float
    centred: bool
    weighed: bool = True

    def read(self, names: Sequence[str], width: int, prefix: str = "", optional: bool = False) -> Norm | None:
        """The norm of size `width` under the first of `names` that the file has.

        None where `names` is empty, or where it is `optional` and the file has none of them.

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
        """The first of `names` that the file has, or the last of them if it has none."""
        return next((name for name in names if self.weights.has(f"{prefix}{name}.weight")), names[-1])

    def make(self, weight: Floats, bias: Floats | None = None) -> Norm:
        """A norm of this kind with the given weight and bias."""
        if self.centred and bias is None:
            bias = np.zeros_like(weight)
        return Norm(weight, bias, np.float32(self.epsilon), self.centred)
