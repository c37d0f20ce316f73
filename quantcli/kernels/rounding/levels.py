"""The levels of a type with scalar codes: the multiples of its scale that its codes stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from quantcli.kernels.blocks.reader import CodeWriter, PackedReader
from quantcli.kernels.jit import inline
from quantcli.kernels.shorthand import F32, Vec
from quantcli.kernels.simd import LANES, maximum, minimum, rint, select, splat


@dataclass(frozen=True)
class Levels:
    """The levels of a type, ascending. A level is its code less `zero`.

    nearest(x)   an `inline` function: the level nearest to each lane of x, a vector of `LANES` float32
    """

    values: tuple[int, ...]
    zero: int
    nearest: Callable[..., Vec]

    @property
    def symmetric(self) -> bool:
        """Whether the negative of each level is one."""
        return all(-level in self.values for level in self.values)


def levels_of(reader: PackedReader, writer: CodeWriter) -> Levels:
    """The levels of a type."""
    values = tuple(sorted({code - reader.zero for code in writer.codes}))
    uniform = isinstance(writer.codes, range)
    return Levels(values, reader.zero, _uniform(values) if uniform else _table(values))


def levels_from(values: tuple[int, ...]) -> Levels:
    """These levels, ascending."""
    return Levels(values, 0, _table(values))


def _uniform(values: tuple[int, ...]) -> Callable[..., Vec]:
    lowest, highest = F32(values[0]), F32(values[-1])

    @inline
    def nearest(x: Vec) -> Vec:
        return minimum(maximum(rint(x), splat(lowest, LANES)), splat(highest, LANES))

    return nearest


def _table(values: tuple[int, ...]) -> Callable[..., Vec]:
    middles = np.array([(low + high) / 2 for low, high in pairwise(values)], np.float32)
    steps = np.diff(np.array(values)).astype(np.float32)
    lowest, count = F32(values[0]), len(steps)

    @inline
    def nearest(x: Vec) -> Vec:
        found, none = splat(lowest, LANES), splat(F32(0), LANES)
        for number in range(count):
            found = found + select(x > middles[number], splat(steps[number], LANES), none)
        return found

    return nearest
