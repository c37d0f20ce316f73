"""Find weights that are NaN or infinite, or that overflow the type they are converted to."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType
from quantcli.core.errors import ValueRangeError
from quantcli.kernels import rows
from quantcli.kernels.finite import first_not_finite
from quantcli.tensors.tensor import TensorInfo

LARGE: Final = 65504.0
"""The largest float16. Weights of working models are far below it. Blocks with larger weights get a round trip check."""

_LOST: Final = 1 / 1024
"""A block is lost if its largest weight dequantizes to less than this fraction.

The searches for scales compute squares and products of weights. If these overflow, the block dequantizes to almost nothing,
though its scale is finite. If they do not, the largest weight dequantizes to at least 1/128 of its size.
"""

_DAMAGED: Final = "the checkpoint is damaged, or was saved after its training diverged"

_WIDER: Final = (("BF16", 3.3895314e38), ("F32", float(np.finfo(np.float32).max)))
"""Types with a wide range, and the largest number of each."""


def check_source(tensor: TensorInfo, start: int, values: NDArray[np.float32]) -> bool:
    """Whether weights are above `LARGE`. `values`, float32 `(rows, row length)`, are rows of `tensor` from `start` on.

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
    """Check rows that are copied. `data`, uint8 `(rows, row bytes)`, are rows of `tensor` from `start` on.

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
    """Check the quantized form of finite weights.

    values     float32 (rows, row length), rows `start` and following of `tensor`
    data       uint8 (rows, row bytes), the same rows in the type `target`
    large      the result of `check_source` for them
    weighted   whether an importance matrix was used

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
        hint = "the values of the importance matrix are too large"
    raise ValueRangeError(
        f"tensor {tensor.name!r}: weight {_index(tensor, start + row, column + place)} is {value:.6g}; {what}", hint=hint
    )


def _first_lost(values: NDArray[np.float32], data: NDArray[np.uint8], kind: BlockType) -> int:
    """The index of the first block that is lost (see `_LOST`) and whose largest weight is above `LARGE`; -1 without any."""
    before, after = (
        np.abs(numbers.reshape(-1, kind.block_length)).max(1) for numbers in (values, rows.dequantize(data, kind))
    )
    lost = (before > LARGE) & ~(after >= before * _LOST)
    return int(lost.argmax()) if lost.any() else -1


def _not_finite(tensor: TensorInfo, row: int, column: int, value: float) -> ValueRangeError:
    return ValueRangeError(f"tensor {tensor.name!r}: weight {_index(tensor, row, column)} is {value}", hint=_DAMAGED)


def _index(tensor: TensorInfo, row: int, column: int) -> list[int]:
    return [*map(int, np.unravel_index(row, tensor.shape[:-1])), column]
