"""Tensors in memory that say what was read of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES
from quantcli.tensors.tensor import Tensor


@dataclass(frozen=True)
class MemoryTensor(Tensor):
    values: NDArray = field(repr=False)
    read_rows: list[int] = field(default_factory=list, repr=False, compare=False)

    def read(self, start, stop, out):
        assert 0 <= start <= stop <= self.rows
        assert out.shape == (stop - start, self.row_bytes)
        self.read_rows.append(stop - start)
        out[...] = self.values.view(np.uint8).reshape(self.rows, self.row_bytes)[start:stop]


def memory_tensor(values: NDArray, name: str = "source", type_name: str | None = None) -> MemoryTensor:
    values = np.ascontiguousarray(values)
    names = {"float32": "F32", "float16": "F16", "uint16": "BF16", "float64": "F64"}
    return MemoryTensor(name, values.shape, TYPES[type_name or names[values.dtype.name]], values)


def counting(*shape: int, dtype=np.float32) -> NDArray:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)
