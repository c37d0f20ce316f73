"""Error feedback between the rows of a matrix, beside that between its columns: two-sided rounding.

With the second moments G of the output's gradient and H of the inputs, the loss of a matrix with the errors E is about
tr(G E H E^T), its second-order term where gradients and inputs are independent (K-FAC, arXiv:1503.05671). G is factorized
as H is, in blocks of rows: G = (I + V)^T B (I + V), V strictly lower block triangular, B block diagonal. So the rows of a
block are rounded, with feedback between columns, to their weights plus what the errors of earlier rows contribute:

    target = w + V[block, earlier] (w - q)[earlier]

Rows of a block are independent of each other: what B has beside its diagonal is ignored. So a block has rows that are far
apart: neighbours, such as those of one attention head, depend on each other most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType
from quantcli.kernels import rows
from quantcli.kernels.products.outer_sums import MULTIPLE, add_products
from quantcli.kernels.rounding.feedback import quantize_with_feedback
from quantcli.kernels.rounding.moment_factor import MomentFactor, factorize
from quantcli.kernels.rounding.stretch import Effort

Floats = NDArray[np.float32]

_MOST_BLOCKS: Final = 32
"""Blocks of a matrix. With more, less of G is ignored, but each block reads all of the columns' factor."""


@dataclass(frozen=True, eq=False)
class RowFactor:
    """The factor of the second moment of a product's gradients.

    upper   float32 (rows, rows): V transposed. Undefined on and below the diagonal blocks
    order   int64 (rows,): the rows in the order in which they are rounded
    block   rows of a block, a multiple of `MULTIPLE`
    """

    upper: Floats
    order: NDArray[np.int64]
    block: int


def factorize_rows(moment: Floats, damping: float) -> RowFactor:
    """Factorize the second moment of gradients.

    moment   float32 (rows, rows), symmetric and given on and above the diagonal; rows a multiple of `MULTIPLE`
    damping  as in `factorize`
    """
    count = len(moment)
    block = MULTIPLE * -(-count // (MULTIPLE * _MOST_BLOCKS))
    order = np.arange(count).reshape(MULTIPLE, -1).T.reshape(-1)
    whole = np.triu(moment)
    whole += np.triu(moment, 1).T
    upper = factorize(whole[np.ix_(order, order)], damping).upper
    for first in range(block, count, block):
        after = min(first + block, count)
        within = _inverse_of_unit_upper(upper[first:after, first:after])
        above = np.zeros((first, after - first), np.float32)
        add_products(np.ascontiguousarray(upper[:first, first:after].T), 0, 0, within, above)
        upper[:first, first:after] = above
    return RowFactor(upper, order, block)


def _inverse_of_unit_upper(matrix: Floats) -> Floats:
    """The inverse of I + U, float32; what `matrix` has on and below its diagonal is not read."""
    inverse = np.eye(len(matrix), dtype=np.float32)
    for k in range(len(matrix)):
        for j in range(k):
            inverse[:, k] -= inverse[:, j] * matrix[j, k]
    return inverse


def quantize_two_sided(
    x: Floats, kind: BlockType, factor: MomentFactor, row_factor: RowFactor, effort: Effort, out: NDArray[np.uint8]
) -> None:
    """Quantize all rows of a matrix with error feedback between columns and between rows.

    x           float32 (rows, n)
    row_factor  of the gradients of the outputs, rows x rows

    The other arguments, and the errors raised, are those of `quantize_with_feedback`.
    """
    targets, data = x[row_factor.order], np.empty_like(out)
    for first in range(0, len(x), row_factor.block):
        after = min(first + row_factor.block, len(x))
        rounded = data[first:after]
        quantize_with_feedback(targets[first:after], kind, factor, effort, rounded)
        if after < len(x):
            errors = x[row_factor.order[first:after]] - rows.dequantize(rounded, kind)
            add_products(row_factor.upper, first, after, errors, targets[after:])
    out[row_factor.order] = data
