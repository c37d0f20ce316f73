"""NVFP4: FP4 (E2M1) codes, two in a byte, with an FP8 scale for each 16 and a float32 scale for each matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from quantcli.core.block_types import TYPES
from quantcli.formats.prequantized.numbers import E2M1, FLOAT_TABLES, Floats, Numbers, Packed, Plain, read_floats, with_rows
from quantcli.formats.prequantized.scaled import Grid, Scaled
from quantcli.tensors.tensor import Tensor

NV_GROUP: Final = 16

Combine = Callable[[Floats, Floats], Floats]
"""Computes the scales from those of groups, `(rows, groups)`, and those of whole matrices, `(rows, 1)`."""

multiplied: Final[Combine] = np.multiply
divided: Final[Combine] = np.divide


def nvfp4(name: str, codes: Tensor, scales: Tensor, whole: Tensor | None, title: str, combine: Combine) -> Scaled:
    """A weight in NVFP4.

    codes     (..., outputs, inputs / 2), the first code in the lower half of a byte
    scales    (..., outputs, inputs / 16), FP8
    whole     a scale for all of the weight, or one for each matrix; None for none
    title     the name of the method
    combine   how `scales` and `whole` are combined

    Raises:
        ValueError: if the scales do not fit the weight.
    """
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    if len(shape) < 2 or not codes.size or shape[-1] % NV_GROUP or scales.shape != (*shape[:-1], shape[-1] // NV_GROUP):
        raise ValueError(f"scales of shape {list(scales.shape)} do not fit a weight of shape {list(shape)}")
    if scales.type.name not in FLOAT_TABLES:
        raise ValueError(f"{scales.name} is {scales.type.name}, expected {' or '.join(FLOAT_TABLES)}")
    of_groups: Numbers = Plain(scales)
    if whole is not None:
        matrices = math.prod(shape[:-2])
        if whole.size not in (1, matrices):
            raise ValueError(f"{whole.name} has {whole.size} values, expected 1" + (f" or {matrices}" * (matrices > 1)))
        of_groups = _TwoLevelScales(scales, with_rows(whole, 1), math.prod(shape[:-1]) // whole.size, combine)
    unpacked = Packed(codes, 4, shape[-1], E2M1)
    grid = Grid(of_groups, math.prod(shape[:-1]), 1, NV_GROUP)
    return Scaled(name, shape, TYPES["F32"], f"{title} NVFP4", unpacked, grid)


@dataclass(frozen=True)
class _TwoLevelScales(Numbers):
    """FP8 scales, combined with a scale in `whole` for each `height` rows of them."""

    scales: Tensor
    whole: Tensor
    height: int
    combine: Combine = field(repr=False, compare=False)

    def rows(self, start: int, stop: int) -> Floats:
        """See `Numbers.rows`."""
        first = start // self.height
        factors = read_floats(self.whole, first, -(-stop // self.height))
        return self.combine(read_floats(self.scales, start, stop), factors[np.arange(start, stop) // self.height - first])
