"""Weights that are not finite, or that the type they are converted to cannot hold: how they are found, and what is said."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.formats.errors import ValueRangeError
from quantcli.formats.tensor import TensorInfo
from quantcli.kernels import rows
from quantcli.kernels.finite import first_not_finite
from quantcli.kernels.types import BlockType

LARGE: Final = 65504.0
"""The largest half. Weights of no working model come near it; a block with a larger one is looked at closely."""

_LOST: Final = 1 / 1024
"""The searches for scales compute with squares and products of weights. Where these overflow the block comes back as next
to nothing though its scale is finite. Where they do not, the largest weight comes back at 1/128 of its size at least."""

_DAMAGED: Final = "the checkpoint is damaged, or was saved after its training diverged"

_WIDER: Final = (("BF16", 3.3895314e38), ("F32", float(np.finfo(np.float32).max)))
"""Types that hold larger numbers than others, and the largest of each."""


def check_source(tensor: TensorInfo, start: int, values: NDArray[np.float32]) -> bool:
    """Whether there are large weights among the rows of `tensor` from `start` on, `values`, float32 `(rows, row length)`.

    Raises:
        ValueRangeError: if one is NaN or infinite.
    """
    if rows.first_beyond(values, LARGE) < 0:
        return False
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = map(int, bad[0])
        raise _not_finite(tensor, start + row, column, float(values[row, column]))
    return True


def check_copied(tensor: TensorInfo, start: int, data: NDArray[np.uint8]) -> None:
    """Check rows that are written as they are: `data`, uint8 `(rows, row bytes)`, of the rows from `start` on.

    Raises:
        ValueRangeError: if a weight or a block's scale is NaN or infinite.
    """
    kind = tensor.type
    bad = first_not_finite(data, kind)
    if bad < 0:
        return
    row, block = divmod(bad, tensor.row_length // kind.block_length)
    column = block * kind.block_length
    if not kind.is_quantized:
        number = data[row : row + 1, block * kind.block_bytes : (block + 1) * kind.block_bytes]
        raise _not_finite(tensor, start + row, column, float(rows.dequantize(number, kind)[0, 0]))
    first, last = (_index(tensor, start + row, place) for place in (column, column + kind.block_length - 1))
    what = f"the {kind.name} block of the weights {first} to {last} has a scale that is not a finite number"
    raise ValueRangeError(f"tensor {tensor.name!r}: {what}", hint=_DAMAGED)


def check_converted(
    tensor: TensorInfo, start: int, values: NDArray[np.float32], data: NDArray[np.uint8], target: BlockType, *,
    large: bool, weighted: bool,
) -> None:  # fmt: skip
    """Check what became of finite weights.

    `values`, float32 `(rows, row length)`, are rows of `tensor` from `start` on, and `data`, uint8, what they are in the
    type `target`. `large` is what `check_source` says of them; `weighted`, that an importance matrix took part.

    Raises:
        ValueRangeError: if the type cannot hold them.
    """
    bad = first_not_finite(data, target)
    if bad < 0 and large and target.is_quantized:
        bad = _first_lost(values, data, target)
    if bad < 0:
        return
    row, block = divmod(bad, tensor.row_length // target.block_length)
    column = block * target.block_length
    held = values[row, column : column + target.block_length]
    place = int(np.abs(held).argmax())
    value = float(held[place])
    what = f"the scale of its {target.name} block overflows" if target.is_quantized else f"{target.name} cannot hold that"
    wider = next((name for name, most in _WIDER if abs(value) <= most))
    hint = f"{wider} holds it: --tensor-type '{tensor.name}={wider}'"
    if weighted and abs(value) <= LARGE:
        hint = "the importance matrix has values that are too large"
    raise ValueRangeError(
        f"tensor {tensor.name!r}: weight {_index(tensor, start + row, column + place)} is {value:.6g}; {what}", hint=hint
    )


def _first_lost(values: NDArray[np.float32], data: NDArray[np.uint8], kind: BlockType) -> int:
    """The first block whose largest weight, a large one, comes back as next to nothing; -1 where there is none."""
    before, after = (
        np.abs(numbers.reshape(-1, kind.block_length)).max(1) for numbers in (values, rows.dequantize(data, kind))
    )
    lost = (before > LARGE) & ~(after >= before * _LOST)
    return int(lost.argmax()) if lost.any() else -1


def _not_finite(tensor: TensorInfo, row: int, column: int, value: float) -> ValueRangeError:
    return ValueRangeError(f"tensor {tensor.name!r}: weight {_index(tensor, row, column)} is {value}", hint=_DAMAGED)


def _index(tensor: TensorInfo, row: int, column: int) -> list[int]:
    return [*map(int, np.unravel_index(row, tensor.shape[:-1])), column]
