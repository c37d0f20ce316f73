"""The differences between the tensors of two files of one model, such as an unquantized file and a quantized one.

Tensors are read and dequantized to float32 in chunks of rows, so memory does not depend on their sizes. Sums are float64.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from quantcli.conversion.execute import row_chunks
from quantcli.conversion.plan import stacked_matrices
from quantcli.core.block_types import BlockType
from quantcli.core.errors import ModelError, ValueRangeError
from quantcli.formats.imatrix import Imatrix
from quantcli.kernels import rows
from quantcli.kernels.compilation import compile_ahead
from quantcli.kernels.error_sums import error_sums, weighted_error_sums
from quantcli.tensors.tensor import Tensor

Floats = NDArray[np.float32]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sums:
    """Sums over some weights: a of the reference, b of the other file, and e = b - a.

    squares, other_squares, products, errors   of a*a, b*b, a*b and e*e
    largest                                    the largest sum of e*e in a block
    weighted, importance                       of importance * e*e, and of the importance values
    """

    count: int = 0
    squares: float = 0.0
    other_squares: float = 0.0
    products: float = 0.0
    errors: float = 0.0
    largest: float = 0.0
    weighted: float = 0.0
    importance: float = 0.0

    def __add__(self, more: Sums) -> Sums:
        return Sums(
            self.count + more.count,
            self.squares + more.squares,
            self.other_squares + more.other_squares,
            self.products + more.products,
            self.errors + more.errors,
            max(self.largest, more.largest),
            self.weighted + more.weighted,
            self.importance + more.importance,
        )


@dataclass(frozen=True)
class TensorError:
    """How a tensor differs from the reference.

    rmse            root mean square of the differences
    relative_rmse   `rmse` divided by the root mean square of the reference; None if only the reference is zero
    sqnr            signal-to-quantization-noise ratio in dB; None where it is infinite: equal tensors, a reference of zeros
    cosine          cosine similarity; None if only one of both is zero
    block_rmse      the largest RMSE of a block
    block_length    weights in such a block: the longer block of the two types; 1 for plain types
    weighted_rmse   RMSE with each column's squared differences weighted by its importance; None without importance
    """

    name: str
    types: tuple[str, str]
    weights: int
    rmse: float
    relative_rmse: float | None
    sqnr: float | None
    cosine: float | None
    block_rmse: float
    block_length: int
    weighted_rmse: float | None

    @property
    def equal(self) -> bool:
        """Whether all weights are equal."""
        return self.rmse == 0


@dataclass(frozen=True)
class Comparison:
    """The errors of the tensors that both files have, the worst first, and what could not be compared.

    missing, added   the tensors that only the reference has, and those that only the other file has
    shapes           name, shape in the reference, shape in the other file
    """

    errors: tuple[TensorError, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    shapes: tuple[tuple[str, Shape, Shape], ...]


def compare_tensors(
    reference: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    importance: Imatrix | None = None,
    *,
    threads: int = 1,
    advance: Callable[[int], object] = lambda done: None,
) -> Comparison:
    """Compare tensors by name.

    Args:
        reference: the tensors of the reference, by name.
        other: those of the other file.
        importance: weights the squared differences of each column, for the tensors it has.
        threads: how many threads read and compare chunks. The result does not depend on it.
        advance: called with the bytes of the reference in each finished chunk.

    Raises:
        ModelError: if no tensor is in both, or the importance matrix is of another model.
        ValueRangeError: for weights that are not finite.
        FormatError, UnsupportedError: if a tensor cannot be read.
    """
    common = [name for name in reference if name in other]
    shapes = tuple(
        (name, reference[name].shape, other[name].shape)
        for name in common
        if _plain_shape(reference[name]) != _plain_shape(other[name])
    )
    unlike = {name for name, *_ in shapes}
    pairs = [_Pair.of(reference[name], other[name], importance) for name in common if name not in unlike]
    if not pairs:
        raise ModelError("the two files have no tensor of the same name and shape", hint="give two files of one model")
    kinds = {tensor.type for pair in pairs for tensor in (pair.first, pair.second)}
    compile_ahead(partial(_call_kernels, kinds, importance is not None))
    totals = [Sums()] * len(pairs)
    for index, sums in _measured(pairs, threads):
        totals[index] += sums
        advance(sums.count // max(1, pairs[index].first.row_length) * pairs[index].first.row_bytes)
    errors = [pair.error(sums) for pair, sums in zip(pairs, totals, strict=True)]
    return Comparison(
        errors=tuple(sorted(errors, key=_badness, reverse=True)),
        missing=tuple(name for name in reference if name not in other),
        added=tuple(name for name in other if name not in reference),
        shapes=shapes,
    )


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two tensors of one shape. `importance` is float32 `(matrices, row length)`, or None."""

    first: Tensor
    second: Tensor
    importance: Floats | None

    @classmethod
    def of(cls, first: Tensor, second: Tensor, importance: Imatrix | None) -> _Pair:
        if importance is None or first.name not in importance.entries:
            return cls(first, second, None)
        matrices = stacked_matrices(first.shape)
        count, expected = importance.entries[first.name].size, first.row_length * matrices
        if count != expected:
            what = f"tensor {first.name!r}: the importance matrix has {count} values, not {expected}"
            raise ModelError(what, hint="it was made from another model")
        return cls(first, second, importance.values(first.name, matrices))

    @property
    def block_length(self) -> int:
        return max(self.first.type.block_length, self.second.type.block_length)

    @property
    def height(self) -> int:
        """Rows of one matrix of a stack."""
        return max(1, self.first.rows // (1 if self.importance is None else len(self.importance)))

    def chunks(self) -> Iterator[tuple[int, int]]:
        """The chunks of rows, each of one matrix: start and stop."""
        return row_chunks(self.first.rows, self.first.row_length, self.height)

    @np.errstate(all="ignore")
    def sums(self, start: int, stop: int) -> Sums:
        """The sums over the rows `start:stop`."""
        a, b = _read(self.first, start, stop), _read(self.second, start, stop)
        plain, weighted = np.zeros(5), np.zeros(2)
        error_sums(a.reshape(-1), b.reshape(-1), self.block_length, plain)
        if self.importance is not None:
            weighted_error_sums(a, b, self.importance[start // self.height], weighted)
        found = Sums(a.size, *plain.tolist(), *weighted.tolist())
        if not math.isfinite(found.squares + found.other_squares):
            raise ValueRangeError(f"tensor {self.first.name!r}: a weight in rows {start} to {stop - 1} is not finite")
        return found

    def error(self, sums: Sums) -> TensorError:
        count = max(1, sums.count)
        norms = math.sqrt(sums.squares) * math.sqrt(sums.other_squares)
        equal = sums.errors == 0
        return TensorError(
            name=self.first.name,
            types=(self.first.type.name, self.second.type.name),
            weights=sums.count,
            rmse=math.sqrt(sums.errors / count),
            relative_rmse=math.sqrt(sums.errors / sums.squares) if sums.squares else 0.0 if equal else None,
            sqnr=None if equal else _decibel(sums.squares, sums.errors),
            cosine=1.0 if equal else sums.products / norms if norms else None,
            block_rmse=math.sqrt(sums.largest / self.block_length),
            block_length=self.block_length,
            weighted_rmse=math.sqrt(sums.weighted / sums.importance) if sums.importance else None,
        )


def _decibel(signal: float, noise: float) -> float | None:
    """The ratio in dB; None for a signal of zero."""
    return 10 * math.log10(signal / noise) if signal else None


def _badness(error: TensorError) -> tuple[bool, float]:
    """A key that grows with the relative RMSE."""
    return error.relative_rmse is None, error.relative_rmse or 0.0


def _plain_shape(tensor: Tensor) -> Shape:
    """The shape without leading axes of length 1, which GGUF does not keep."""
    shape = tensor.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _read(tensor: Tensor, start: int, stop: int) -> Floats:
    """The rows `start:stop`, float32 `(rows, row length)`."""
    raw = np.empty((stop - start, tensor.row_bytes), np.uint8)
    tensor.read(start, stop, raw)
    if tensor.type.family is None:
        return raw.view(tensor.type.layout).astype(np.float32)
    return rows.dequantize(raw, tensor.type)


def _call_kernels(kinds: set[BlockType], weighted: bool) -> None:
    """Call the kernels that comparing tensors of these types calls."""
    rows.call_kernels({kind for kind in kinds if kind.family is not None}, set())
    numbers = np.zeros((1, 1), np.float32)
    error_sums(numbers[0], numbers[0], 1, np.zeros(5))
    if weighted:
        weighted_error_sums(numbers, numbers, numbers[0], np.zeros(2))


def _measured(pairs: list[_Pair], threads: int) -> Iterator[tuple[int, Sums]]:
    """The sums of each chunk with the index of its pair, in order. A few chunks more than threads are under way at once."""
    waiting: deque[tuple[int, Future[Sums]]] = deque()
    with ThreadPoolExecutor(threads, "compare") as pool:
        try:
            for index, pair in enumerate(pairs):
                for start, stop in pair.chunks():
                    waiting.append((index, pool.submit(pair.sums, start, stop)))
                    if len(waiting) > 2 * threads:
                        done, future = waiting.popleft()
                        yield done, future.result()
            for done, future in waiting:
                yield done, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
