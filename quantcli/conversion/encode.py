"""How rows of a planned tensor become what the file holds: an encoder for each tensor, chosen before any row is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quantcli.conversion.plan import PlannedTensor
from quantcli.formats.imatrix import Imatrix
from quantcli.kernels import rows
from quantcli.kernels.types import BlockType

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Encoder(Protocol):
    """Turns rows of a tensor into rows of a type.

    encode(values, start, out)   values: float32 (rows, row length), the rows of the tensor from `start` on, of one matrix
                                 where it is a stack; out: uint8 (rows, bytes of a row). Several threads call it at once.
    """

    def encode(self, values: Floats, start: int, out: Bytes) -> None:
        """See above."""

    @property
    def needs(self) -> tuple[set[BlockType], set[tuple[BlockType, bool]]]:
        """The kernels that it calls: types that are dequantized, and types that are quantized to, each with importance or
        without."""


@dataclass(frozen=True)
class ReferenceEncoder:
    """The reference's rounding without an importance matrix."""

    type: BlockType

    def encode(self, values: Floats, start: int, out: Bytes) -> None:
        """See `Encoder`."""
        rows.quantize(values, self.type, None, out)

    @property
    def needs(self) -> tuple[set[BlockType], set[tuple[BlockType, bool]]]:
        """See `Encoder`."""
        return set(), {(self.type, False)}


@dataclass(frozen=True, eq=False)
class ImportanceEncoder:
    """The reference's rounding guided by an importance matrix.

    `importance` is float32 `(matrices, row length)`: a vector for each matrix of `height` rows.
    """

    type: BlockType
    importance: Floats
    height: int

    def encode(self, values: Floats, start: int, out: Bytes) -> None:
        """See `Encoder`."""
        rows.quantize(values, self.type, self.vector(start), out)

    def vector(self, start: int) -> Floats:
        """The importance of each column, float32 `(row length,)`, for the matrix that row `start` belongs to."""
        vector: Floats = self.importance[start // self.height]
        return vector

    @property
    def needs(self) -> tuple[set[BlockType], set[tuple[BlockType, bool]]]:
        """See `Encoder`."""
        return set(), {(self.type, True)}


@dataclass(frozen=True)
class ExactEncoder:
    """Weights that lie on the grid of the type, packed so that their round trip is exact: see `rows.repack_inexact`.
    `otherwise` is the encoder for blocks that come back exactly by themselves."""

    otherwise: ReferenceEncoder | ImportanceEncoder
    source_type: BlockType

    def encode(self, values: Floats, start: int, out: Bytes) -> None:
        """See `Encoder`."""
        self.otherwise.encode(values, start, out)
        rows.repack_inexact(values, self.otherwise.type, self.source_type, out)

    @property
    def needs(self) -> tuple[set[BlockType], set[tuple[BlockType, bool]]]:
        """See `Encoder`."""
        return {self.otherwise.type}, self.otherwise.needs[1]


def encoder_for(planned: PlannedTensor, imatrix: Imatrix | None) -> Encoder | None:
    """The encoder of a planned tensor; None for one that is copied as it is."""
    if planned.type is planned.source_type:
        return None
    encoder: ReferenceEncoder | ImportanceEncoder = ReferenceEncoder(planned.type)
    if imatrix is not None and planned.importance:
        matrices = planned.shape[-3] if len(planned.shape) > 2 else 1
        encoder = ImportanceEncoder(planned.type, imatrix.values(planned.name, matrices), planned.shape[-2])
    return ExactEncoder(encoder, planned.source_type) if planned.exact else encoder
