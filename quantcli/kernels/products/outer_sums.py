"""out += left.T @ right for floats: second moments of activations, their factorization, and the errors that rounding feeds
to later columns.

Each element is a sum over the rows in their order, added by FMA, which rounds once on every machine: the result depends
neither on the machine nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from quantcli.kernels.jit import inline, kernel
from quantcli.kernels.products.many_columns import ROW_VECTORS
from quantcli.kernels.shorthand import Floats, Scratch
from quantcli.kernels.simd import LANES, address, advance, grid_operations, load, store
from quantcli.kernels.threads import parallel_kernel
from quantcli.kernels.threads.loops import parallel_for

MULTIPLE: Final = 32
"""The numbers of columns are multiples of it."""

_ABREAST: Final = 8
"""Columns of `left` in a register tile. With `ROW_VECTORS`, 16 or 8 accumulators keep two FMA units busy."""

_PANEL: Final = 128
"""Columns of `right` that are copied together, so that a panel's rows are contiguous and stay in the second-level cache."""

_DEPTH: Final = 512
"""Rows of a panel."""


def _panel_adder(dtype: Any) -> Callable[..., None]:
    """The `inline` function that adds the products of columns 0 to `until` of `left` with `width` columns of `right` from
    `first` on. The arrays are addresses of elements of `dtype`."""
    lanes = LANES * 4 // np.dtype(dtype).itemsize
    grid = grid_operations(ROW_VECTORS, _ABREAST, lanes)
    read, write, add, tile = grid.read, grid.write, grid.add_outer, ROW_VECTORS * lanes

    @inline
    def add_panel(
        left: Any, left_width: Any, until: Any, right: Any, right_width: Any, rows: Any, first: Any, width: Any,
        out: Any, out_width: Any,
    ) -> None:  # fmt: skip
        panel, columns = np.empty(_DEPTH * _PANEL, dtype), np.empty(_DEPTH * _ABREAST, dtype)
        own, others = address(panel, dtype), address(columns, dtype)
        for top in range(0, rows, _DEPTH):
            depth = min(_DEPTH, rows - top)
            for j in range(depth):
                for r in range(0, width, lanes):
                    store(own, j * _PANEL + r, load(right, (top + j) * right_width + first + r, lanes))
            for k in range(0, until, _ABREAST):
                for j in range(depth):
                    store(others, j * _ABREAST, load(left, (top + j) * left_width + k, _ABREAST))
                for r in range(0, width, tile):
                    place = k * out_width + first + r
                    total = read(out, place, out_width)
                    for j in range(depth):
                        total = add(total, own, j * _PANEL + r, others, j * _ABREAST, 1)
                    write(total, out, place, out_width)
        # An array is freed after its last use, and taking its address is one: these keep the memory until here.
        panel[0] = columns[0] = 0

    return add_panel


_add_panel, _add_panel_of_doubles = _panel_adder(np.float32), _panel_adder(np.float64)


@kernel
def add_products(left: Floats, top: int, column: int, right: Floats, out: Floats) -> None:
    """out += left[top : top + rows, column : column + k].T @ right, serially.

    left float32 (m, n), right float32 (rows, r), out float32 (k, r), all C-contiguous. k and r are multiples of `MULTIPLE`.
    """
    n, count, wide = left.shape[1], out.shape[0], right.shape[1]
    a, b, c = address(left, np.float32), address(right, np.float32), address(out, np.float32)
    window = advance(a, top * n + column)
    for panel in range(0, wide, _PANEL):
        width = min(_PANEL, wide - panel)
        _add_panel(window, n, count, b, wide, len(right), panel, width, c, wide)


def _upper_adder(dtype: Any, add_panel: Callable[..., None]) -> Any:
    @inline
    def add_one(number: Any, left: Any, right: Any, out: Any) -> None:
        n, wide = left.shape[1], out.shape[1]
        first = (n - 1) // _PANEL * _PANEL - number * _PANEL  # the long panels first
        width = min(_PANEL, n - first)
        a, b, c = address(left, dtype), address(right, dtype), address(out, dtype)
        add_panel(a, n, first + width, b, n, left.shape[0], first, width, c, wide)

    @parallel_kernel
    def add_upper(pool: int, left: Scratch, right: Scratch, out: Scratch) -> None:
        parallel_for(pool, (left.shape[1] + _PANEL - 1) // _PANEL, add_one, (left, right, out))

    return add_upper


add_upper_products: Final = _upper_adder(np.float32, _add_panel)
"""`add_upper_products(left, right, out)`: out += left.T @ right on and above the diagonal, by the threads of the pool. The
result below it is undefined.

left, right float32 (rows, n), out float32 (n or more, n or more), C-contiguous; n is a multiple of `MULTIPLE`.
"""

add_upper_products_of_doubles: Final = _upper_adder(np.float64, _add_panel_of_doubles)
"""The same in float64."""
