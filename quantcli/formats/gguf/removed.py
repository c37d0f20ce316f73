"""Tensor types that ggml has removed: their tensors can be listed and copied, but not read.

Source: `ggml.h` of llama.cpp for the ids, its history for the sizes of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from quantcli.core.block_types import BlockType
from quantcli.core.errors import UnsupportedError
from quantcli.tensors.tensor import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCKS: Final = (
    ("Q4_2", 4, 16, 10), ("Q4_3", 5, 16, 12),
    ("Q4_0_4_4", 31, 32, 18), ("Q4_0_4_8", 32, 32, 18), ("Q4_0_8_8", 33, 32, 18),
    ("IQ4_NL_4_4", 36, 32, 18), ("IQ4_NL_4_8", 37, 32, 18), ("IQ4_NL_8_8", 38, 32, 18),
)  # fmt: skip
"""Name, id, weights in a block, bytes of a block."""

REMOVED_TYPES: Final[Mapping[int, BlockType]] = MappingProxyType(
    {number: BlockType(name, number, length, f"V{size}") for name, number, length, size in _BLOCKS}
)
"""Id in a GGUF file -> type."""


@dataclass(frozen=True)
class RemovedTensor(StoredTensor):
    """A tensor of one of `REMOVED_TYPES`."""

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """Refuse to read.

        Raises:
            UnsupportedError: always.
        """
        raise self.refusal()

    def refusal(self) -> UnsupportedError:
        """The error that reading raises."""
        return UnsupportedError(
            f"{self.file.path}: tensor {self.name!r} has the type {self.type.name}, which ggml has removed",
            hint="quantize the original model again",
        )
