"""Collects second moments: for each matrix product, the mean of x x^T over its inputs x.

Rounding with error feedback minimizes the error of a product's outputs under them. An importance matrix is their diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import GenerationError
from quantcli.formats.imatrix_sums import FEW_TOKENS
from quantcli.kernels.products.outer_sums import MULTIPLE, add_upper_products
from quantcli.kernels.rounding.moment_factor import MomentFactor, factorize

Floats = NDArray[np.float32]


@dataclass(eq=False)
class Inputs:
    """The inputs of one or more products.

    moment   float32 (n, n): the sum of x x^T over the inputs, on and above the diagonal
    count    how many inputs
    held     other inputs, float32 (tokens, n) each, to try results on
    """

    moment: Floats
    count: int = 0
    held: list[Floats] = field(default_factory=list)

    @property
    def importance(self) -> Floats:
        """The mean square of each column, float32 `(n,)`: the values of an importance matrix."""
        values: Floats = np.diagonal(self.moment) / np.float32(max(1, self.count))
        return values

    @property
    def held_rows(self) -> Floats:
        """All inputs that are held out, float32 `(tokens, n)`. They are joined once."""
        if len(self.held) > 1:
            self.held = [np.concatenate(self.held)]
        return self.held[0] if self.held else np.empty((0, len(self.moment)), np.float32)


@dataclass(frozen=True, eq=False)
class _Observed:
    """The rows that were observed last, a copy of the first of them, and the inputs that they were added to."""

    rows: Floats
    first: Floats
    inputs: Inputs

    def is_of(self, rows: Floats) -> bool:
        """Whether these rows are the same. A model may have overwritten them, so the first is compared."""
        return rows is self.rows and np.array_equal(rows[0], self.first)


_ONLY: Final = 0
"""The index of a tensor's matrix that is not stacked."""


@dataclass(eq=False)
class MomentCollector:
    """An observer (`runner.weights.Observer`) that accumulates second moments.

    wanted    whether a tensor's inputs are wanted
    holding   whether inputs are held out at the moment, instead of being added
    paused    whether inputs are ignored at the moment
    found     (tensor, index of its matrix) -> its inputs. Products of one input, such as Q, K and V, share an object
    """

    wanted: Callable[[str], bool]
    holding: bool = False
    paused: bool = False
    found: dict[tuple[str, int], Inputs] = field(default_factory=dict)
    _last: _Observed | None = None

    def __call__(self, tensor: str, rows: Floats, index: int | None, /) -> None:
        """See `runner.weights.Observer`."""
        if self.paused or not self.wanted(tensor) or rows.shape[1] % MULTIPLE:
            return
        key = tensor, _ONLY if index is None else index
        last = self._last
        if last is not None and last.is_of(rows) and self.found.get(key, last.inputs) is last.inputs:
            self.found[key] = last.inputs
            return
        if key not in self.found:
            self.found[key] = Inputs(np.zeros((rows.shape[1], rows.shape[1]), np.float32))
        inputs = self.found[key]
        self._last = _Observed(rows, rows[0].copy(), inputs)
        if self.holding:
            inputs.held.append(rows.copy())
            return
        inputs.count += len(rows)
        x = np.ascontiguousarray(rows)
        add_upper_products(x, x, inputs.moment)

    def take(self) -> dict[tuple[str, int], Inputs]:
        """What was found since the last call.

        Raises:
            GenerationError: naming the first tensor with inputs that are not finite.
        """
        found, self.found, self._last = self.found, {}, None
        for (tensor, _), inputs in found.items():
            if not np.isfinite(inputs.importance).all():
                raise GenerationError(f"{tensor}: the sums of its squared inputs are not finite")
        return found


SHRINKING: Final = FEW_TOKENS
"""As many inputs of all experts are added to those of each: an expert with few tokens has a poor moment of its own."""


_KEPT: Final = 2
"""Threads quantize neighbouring rows, of one matrix or two."""


class Factors:
    """The factors of the moments of a tensor's matrices, made when they are asked for. Safe to call from several threads.

    An expert's moment is shrunk towards that of all experts of the layer. Those of the last few matrices are kept.
    """

    def __init__(self, inputs: Sequence[Inputs | None], damping: float) -> None:
        self._inputs, self._damping, self._lock = list(inputs), damping, Lock()
        self._made: dict[int, MomentFactor] = {}

    def __getitem__(self, matrix: int) -> MomentFactor:
        with self._lock:
            if matrix not in self._made:
                if len(self._made) >= _KEPT:
                    del self._made[next(iter(self._made))]
                self._made[matrix] = factorize(self._moment(matrix), self._damping)
            return self._made[matrix]

    def _moment(self, matrix: int) -> Floats:
        own = self._inputs[matrix]
        if len(self._inputs) == 1 and own is not None:
            return own.moment
        moment, count = self._pooled
        pooled = moment * np.float32(SHRINKING / max(1, count))
        return pooled if own is None else pooled + own.moment

    @cached_property
    def _pooled(self) -> tuple[Floats, int]:
        """The sum of the moments of all matrices, and the number of inputs."""
        reached = [given for given in self._inputs if given is not None and given.count]
        moment = np.zeros_like(reached[0].moment)
        for given in reached:
            moment += given.moment
        return moment, sum(given.count for given in reached)

