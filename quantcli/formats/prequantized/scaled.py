"""Weights as codes with scales and zero points, `w = s (q - z)`. A scale applies to a rectangle of the weight.

Nearly all quantization methods store this. They differ in the packing of the codes and in the rectangles of the scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantcli.core.errors import ModelError
from quantcli.formats.prequantized.numbers import FLOATS, Floats, Numbers, Plain, read_floats, read_raw, with_rows
from quantcli.tensors.tensor import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Decoded(Tensor):
    """A weight dequantized from the tensors of a quantization method. `origin` names the method for users."""

    origin: str


@dataclass(frozen=True)
class Grid:
    """Scales or zero points of a weight, each for `height` rows and `width` columns.

    numbers       for each stacked matrix of `matrix_rows` rows it has matrix_rows / height rows (rounded up), and one
                  column for each `width` columns of the weight
    matrix_rows   rows of one of the stacked matrices
    columns       if given, the column of `numbers` for each column of the weight, in place of `width`
    """

    numbers: Numbers
    matrix_rows: int
    height: int
    width: int
    columns: ColumnGroups | None = None

    def over(self, start: int, stop: int, length: int) -> Floats:
        """The scale or zero point of each weight of the rows `start:stop`, broadcastable to `(stop - start, length)`."""
        down = -(-self.matrix_rows // self.height)
        rows = np.arange(start, stop)
        places = rows // self.matrix_rows * down + rows % self.matrix_rows // self.height
        first, last = int(places[0]), int(places[-1]) + 1
        numbers = self.numbers.rows(first, last)
        if self.columns is not None:
            numbers = np.take(numbers, self.columns.read(numbers.shape[1]), axis=1)
        elif numbers.shape[1] > 1:
            numbers = np.repeat(numbers, self.width, axis=1)[:, :length]
        return numbers if len(numbers) in (1, stop - start) else numbers[places - first]


@dataclass(frozen=True)
class ColumnGroups:
    """The group of each column of a weight with act-order (`g_idx`): a tensor of integers."""

    source: Tensor

    def read(self, groups: int) -> NDArray[np.intp]:
        """The group of each column.

        Raises:
            ModelError: if one is not below `groups`.
        """
        found: NDArray[np.intp] = read_raw(self.source, 0, 1)[0].astype(np.intp)
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < groups:
            what = f"tensor {self.source.name!r} names groups {found.min()} to {found.max()}, but there are {groups}"
            raise ModelError(what, hint="The download may be damaged: download the model again.")
        return found


@dataclass(frozen=True)
class Scaled(Decoded):
    """`(code - zero point) * scale`, in float32. Zero points and scales are optional."""

    codes: Numbers
    scales: Grid | None = None
    zeros: Grid | None = None

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        if not out.size:
            return
        values = self.codes.rows(start, stop)
        with np.errstate(all="ignore"):  # NaN and infinite weights are refused when they are converted
            if self.zeros is not None:
                values -= self.zeros.over(start, stop, self.row_length)
            if self.scales is not None:
                values *= self.scales.over(start, stop, self.row_length)
        out.view(np.float32)[...] = values


@dataclass(frozen=True)
class Shifted(Decoded):
    """`code * scale + offset`."""

    codes: Numbers
    scales: Grid
    offsets: Grid

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        if not out.size:
            return
        values = self.codes.rows(start, stop)
        with np.errstate(all="ignore"):
            values *= self.scales.over(start, stop, self.row_length)
            values += self.offsets.over(start, stop, self.row_length)
        out.view(np.float32)[...] = values


@dataclass(frozen=True)
class Smoothed(Decoded):
    """A weight with the factors of its inputs (SmoothQuant, AWQ) multiplied into its columns."""

    weight: Decoded
    factors: Tensor

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`."""
        if not out.size:
            return
        self.weight.read(start, stop, out)
        values = out.view(np.float32)
        with np.errstate(all="ignore"):
            values *= read_floats(self.factors, 0, 1)


def smoothed(weight: Decoded, factors: Tensor) -> Smoothed:
    """The weight with `factors`, one for each input, multiplied into its columns.

    Raises:
        ValueError: if the factors do not fit, or the weight is in a packed type.
    """
    length = weight.row_length
    if factors.size != length or factors.type.name not in FLOATS or weight.type.is_quantized:
        what = f"{factors.name} {factors.type.name} {list(factors.shape)}"
        raise ValueError(f"{what} cannot be multiplied into a {weight.type.name} weight of {length} inputs")
    return Smoothed(weight.name, weight.shape, weight.type, weight.origin, weight, with_rows(factors, length))


def scale_grid(
    source: Tensor, shape: tuple[int, ...], block: tuple[int, int] | None = None, group: int | None = None
) -> Grid:
    """The grid of the scales (or zero points) in `source` over a weight of `shape`.

    The shape of `source` tells what a scale is for: the whole weight, each matrix, each row, groups of columns, or blocks
    of the size `block`. Groups have `group` columns if that gives as many groups as there are scales, and the last group
    may be shorter. Otherwise all groups have the same size.

    Raises:
        ValueError: if the scales do not fit the weight.
    """
    matrices, height, width = math.prod(shape[:-2]), shape[-2], shape[-1]
    misfit = _misfit(source, shape)
    if not source.size or 0 in shape:
        raise misfit
    given = list(source.shape)
    if block is not None:
        across = -(-width // block[1])
        if given[-2:] == [-(-height // block[0]), across] and math.prod(given[:-2]) == matrices:
            return Grid(Plain(with_rows(source, across)), height, block[0], block[1])
    if source.size == 1:
        return Grid(Plain(with_rows(source, 1)), matrices * height, matrices * height, width)
    while len(given) > 1 and given[-1] == 1:
        given.pop()
    lengths = tuple(given)
    if math.prod(lengths) == matrices and lengths[-1] == matrices:
        return Grid(Plain(with_rows(source, 1)), height, height, width)
    if math.prod(lengths) == matrices * height and lengths[-1] == height:
        return Grid(Plain(with_rows(source, 1)), height, 1, width)
    groups = lengths[-1]
    if len(lengths) >= 2 and math.prod(lengths) == matrices * height * groups and lengths[-2] == height and groups <= width:
        size = group_width(width, groups, group)
        if size is not None:
            return Grid(Plain(with_rows(source, groups)), height, 1, size)
    raise misfit


def group_width(width: int, groups: int, given: int | None) -> int | None:
    """The size of each of `groups` groups of `width` columns: `given` if that gives so many groups, else an equal share.

    None if `width` does not divide into equal groups either.
    """
    if given is not None and given > 0 and -(-width // given) == groups:
        return given
    return width // groups if groups > 0 and width % groups == 0 else None


def column_grid(source: Tensor, shape: tuple[int, ...], _block: tuple[int, int] | None = None) -> Grid:
    """The grid of scales for each column of each stacked matrix of a weight of `shape`.

    Raises:
        ValueError: if the scales do not fit the weight.
    """
    if not source.size or source.size != math.prod(shape[:-2]) * shape[-1]:
        raise _misfit(source, shape)
    return Grid(Plain(with_rows(source, shape[-1])), shape[-2], shape[-2], 1)


def _misfit(scales: Tensor, shape: tuple[int, ...]) -> ValueError:
    return ValueError(f"scales of shape {list(scales.shape)} do not fit a weight of shape {list(shape)}")
