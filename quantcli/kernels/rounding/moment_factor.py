"""The factors of a second moment that rounding with error feedback uses: H = (I + U) D (I + U)^T.

It is a Cholesky factorization from the last column to the first, blocked, in float64. Every sum has a fixed order, so the
factors are the same on every machine, unlike LAPACK's.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.jit import kernel
from quantcli.kernels.products.outer_sums import add_upper_products_of_doubles
from quantcli.kernels.shorthand import Floats

Doubles = NDArray[np.float64]

_BLOCK: Final = 64
"""Columns factorized together. The rest is updated by one product of so many rows."""


class MomentFactor(NamedTuple):
    """A second moment and its factors.

    upper     float32 (n, n): U. Undefined on and below the diagonal
    diagonal  float32 (n,): D
    moment    float32 (n, n): H, symmetric, with its diagonal damped
    """

    upper: Floats
    diagonal: Floats
    moment: Floats


def factorize(moment: Floats, damping: float) -> MomentFactor:
    """Factorize a second moment.

    moment   float32 (n, n), symmetric and given on and above the diagonal; n a multiple of 32
    damping  is added to the diagonal, times the diagonal's mean. So columns that are zero in all inputs do no harm

    A moment of zeros is taken for the identity.
    """
    n = len(moment)
    mean = float(np.diagonal(moment).mean(dtype=np.float64))
    damped = np.triu(moment, 1)
    damped += damped.T
    damped.ravel()[:: n + 1] = np.diagonal(moment) + np.float32(damping * mean if mean > 0 else 1.0)
    matrix = damped.astype(np.float64)
    upper, squares = np.empty((n, n), np.float32), np.empty(n, np.float32)
    least = (mean if mean > 0 else 1.0) * 1e-9
    for stop in range(n, 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        panel, negative = np.empty((stop - start, start)), np.empty((stop - start, start))
        _factorize_block(matrix, start, stop, least, panel, negative, upper, squares)
        if start:
            add_upper_products_of_doubles(negative, panel, matrix)
    return MomentFactor(upper, squares, damped)


@kernel
def _factorize_block(
    matrix: Doubles, start: int, stop: int, least: float, panel: Doubles, negative: Doubles, upper: Floats, squares: Floats
) -> None:
    """Factorize columns `start` to `stop` of `matrix`, whose later columns are done, in place.

    panel, negative  receive their part above row `start`, transposed, and its negative
    """
    for j in range(stop - 1, start - 1, -1):
        pivot = max(matrix[j, j], least)
        squares[j] = np.float32(pivot)
        root = np.sqrt(pivot)
        matrix[j, j] = root
        for i in range(start, j):
            matrix[i, j] /= root
        for i in range(start, j):
            for k in range(i, j):
                matrix[i, k] -= matrix[i, j] * matrix[k, j]
    for j in range(stop - 1, start - 1, -1):
        row = panel[j - start]
        for r in range(start):
            row[r] = matrix[r, j]
        for k in range(j + 1, stop):
            factor, other = matrix[j, k], panel[k - start]
            for r in range(start):
                row[r] -= factor * other[r]
        inverse = 1 / matrix[j, j]
        for r in range(start):
            row[r] *= inverse
            negative[j - start, r] = -row[r]
            upper[r, j] = np.float32(row[r] * inverse)
        for r in range(start, j):
            upper[r, j] = np.float32(matrix[r, j] * inverse)
