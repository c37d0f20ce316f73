"""What names and shapes cannot tell a plan: which weights were quantized before, and which lie on the grid of their type.

Weights lie on the grid of a type if some block of it dequantizes to exactly them. Where the checkpoint holds BF16 or F16,
the dequantized values are rounded to that type before they are compared. Such weights are packed so that the round trip is
exact. The question is answered for a whole tensor: one block off the grid, and all blocks are quantized as usual. A tensor
off the grid mostly costs the reading of one row. The whole tensor is read only if its sample rows lie on the grid.
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
from quantcli.kernels.rounding.exact_grids import GRIDS, ROUNDED, lies_on_grid, may_lie_on_grid
from quantcli.kernels.rows import dequantize
from quantcli.tensors.tensor import Tensor, made_of

_SAMPLES: Final = 8
"""Sample rows that are tested, one after another, before the whole tensor is."""

_CHUNK_WEIGHTS: Final = 1 << 18


def inspect_weights(
    plan: Sequence[PlannedTensor], tensors: Mapping[str, Tensor], threads: int, *, read: bool = True
) -> list[PlannedTensor]:
    """The plan with `PlannedTensor.origin` and `PlannedTensor.exact` set from the tensors, and the reasons extended.

    Without `read` no row is read, and no tensor is found to be exact.

    Raises:
        FormatError, ModelError, HubError: if rows cannot be read.
    """
    with ThreadPoolExecutor(threads) as pool:
        return [_inspected(planned, tensors[planned.name], pool if read else None) for planned in plan]


def origin_of(tensor: Tensor) -> str:
    """The quantization method of the first quantized source tensor, such as `GPTQ 4-bit`; empty if none was quantized."""
    return next((part.origin for part in made_of(tensor) if isinstance(part, Decoded)), "")


def _inspected(planned: PlannedTensor, tensor: Tensor, pool: ThreadPoolExecutor | None) -> PlannedTensor:
    origin, exact, reasons = origin_of(tensor), False, [planned.reason]
    if planned.type is planned.source_type and planned.type.is_quantized and origin:
        reasons.append(f"the checkpoint's {origin} blocks, repacked without loss")
    elif origin:
        reasons.append(f"quantized in the checkpoint as {origin}")
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
    # The middle row first: the first and last rows of an embedding may be unused.
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
        off_grid.set()  # the chunks that are still queued are skipped
        raise
    return not off_grid.is_set()


def _floats(tensor: Tensor, start: int, stop: int) -> Floats:
    raw = np.empty((stop - start, tensor.row_bytes), np.uint8)
    tensor.read(start, stop, raw)
    # Plain types need no kernel, so that a dry run of an unquantized checkpoint compiles nothing.
    return (
        dequantize(raw, tensor.type) if tensor.type.is_quantized else to_floats(raw.view(tensor.type.layout), tensor.type)
    )
