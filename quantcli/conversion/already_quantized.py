"""What a plan cannot tell from names and shapes: which weights were quantized before, and which lie on a type's grid.

Weights on a grid that the planned type holds are packed without loss: dequantized, and rounded to BF16 or F16 where the
checkpoint has them in that, they are the checkpoint's numbers. That is found out for a tensor as a whole: where one block
does not lie on the grid, all are quantized as ever. It costs one row of a tensor whose weights do not lie on it; only where
some rows do is all of the tensor read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Final

import numpy as np

from quantcli.conversion.plan import PlannedTensor
from quantcli.formats.prequantized.numbers import Floats, to_floats
from quantcli.formats.prequantized.scaled import Decoded
from quantcli.formats.tensor import Tensor, made_of
from quantcli.kernels.grids import GRIDS, ROUNDED, lies_on_grid, may_lie_on_grid
from quantcli.kernels.rows import dequantize

_SAMPLES: Final = 8
"""Rows that are looked at, one after another, before all are."""

_CHUNK_WEIGHTS: Final = 1 << 18


def look_at_weights(
    plan: Sequence[PlannedTensor], tensors: Mapping[str, Tensor], threads: int, *, read: bool = True
) -> list[PlannedTensor]:
    """The plan, with what the tensors it is for tell: see `PlannedTensor.origin` and `PlannedTensor.exact`. The reasons
    say it too. Without `read` no row is read, and no tensor is found to be exact.

    Raises:
        FormatError, ModelError, HubError: if rows cannot be read.
    """
    with ThreadPoolExecutor(threads) as pool:
        return [_looked_at(planned, tensors[planned.name], pool if read else None) for planned in plan]


def origin_of(tensor: Tensor) -> str:
    """How the checkpoint has what a tensor is made of, if that was quantized: its first part's method."""
    return next((part.origin for part in made_of(tensor) if isinstance(part, Decoded)), "")


def _looked_at(planned: PlannedTensor, tensor: Tensor, pool: ThreadPoolExecutor | None) -> PlannedTensor:
    origin, exact, reasons = origin_of(tensor), False, [planned.reason]
    if planned.type is planned.source_type and planned.type.is_quantized and origin:
        reasons.append(f"the checkpoint's {origin} blocks, repacked without loss")
    elif origin:
        reasons.append(f"the checkpoint has it as {origin}")
    converted = planned.type is not planned.source_type and planned.source_type.family is not None
    if pool and converted and planned.type in GRIDS:
        exact = _is_on_grid(planned, tensor, pool)
    if exact:
        precision = f", to the precision of {tensor.type.name}," if tensor.type.name in ROUNDED else ""
        reasons.append(f"its weights lie on a {planned.type.name} grid{precision} and are repacked without loss")
    return replace(planned, origin=origin, exact=exact, reason="; ".join(reasons))


def _is_on_grid(planned: PlannedTensor, tensor: Tensor, pool: ThreadPoolExecutor) -> bool:
    if not tensor.size:
        return False
    # The middle row first: the ends of an embedding may be unused.
    samples = (tensor.rows // 2, *range(0, tensor.rows, max(1, tensor.rows // _SAMPLES)))
    for row in samples:
        values = _floats(tensor, row, row + 1)
        if not (may_lie_on_grid(values, planned.type) and lies_on_grid(values, planned.type, tensor.type)):
            return False
    step = max(1, _CHUNK_WEIGHTS // tensor.row_length)
    off_grid = Event()

    def look(start: int) -> None:
        stop = min(start + step, tensor.rows)
        if not off_grid.is_set() and not lies_on_grid(_floats(tensor, start, stop), planned.type, tensor.type):
            off_grid.set()

    try:
        for _ in pool.map(look, range(0, tensor.rows, step)):
            pass
    except BaseException:
        off_grid.set()  # what is still to be looked at need not be
        raise
    return not off_grid.is_set()


def _floats(tensor: Tensor, start: int, stop: int) -> Floats:
    raw = np.empty((stop - start, tensor.row_bytes), np.uint8)
    tensor.read(start, stop, raw)
    # Without a kernel where none is needed: a dry run of ordinary weights compiles nothing.
    return (
        dequantize(raw, tensor.type) if tensor.type.is_quantized else to_floats(raw.view(tensor.type.layout), tensor.type)
    )
