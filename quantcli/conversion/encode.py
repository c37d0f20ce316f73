"""Encoders, which quantize rows of float32. Each planned tensor has one, chosen before any row is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from quantcli.conversion.plan import PlannedTensor, stacked_matrices
from quantcli.core.block_types import BlockType
from quantcli.formats.imatrix import Imatrix
from quantcli.kernels import rows
from quantcli.kernels.rounding.feedback import quantize_with_feedback
from quantcli.kernels.rounding.moment_factor import MomentFactor
from quantcli.kernels.rounding.row_feedback import RowFactor, quantize_two_sided
from quantcli.kernels.rounding.stretch import Effort

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Needs(NamedTuple):
    """What an encoder needs.

    decoded   the types that it dequantizes
    encoded   the types that it quantizes to, each with whether with importance
    matrices  whether it needs all rows of a matrix at once
    """

    decoded: set[BlockType]
    encoded: set[tuple[BlockType, bool]]
    matrices: bool = False


class Encoder(Protocol):
    """Quantizes rows of a tensor.

    encode(values, start, out)   values  float32 (rows, row length), rows `start` and following of the tensor
                                 out     uint8 (rows, row bytes)

    The rows of one call belong to one matrix of a stack. Calls from several threads at once are safe.
    """

    def encode(self, values: Floats, start: int, out: Bytes) -> None:
        """See above."""

    @property
    def needs(self) -> Needs:
        """What it needs."""


@dataclass(frozen=True)
class ReferenceEncoder:
    """llama.cpp's quantization without an importance matrix."""

    type: BlockType

    def encode(self, values: Floats, start: int, out: Bytes) -> None:
        """See `Encoder`."""
        rows.quantize(values, self.type, None, out)

    @property
    def needs(self) -> Needs:
        """See `Encoder`."""
        return Needs(set(), {(self.type, False)})


@dataclass(frozen=True, eq=False)
class ImportanceEncoder:
    """llama.cpp's quantization with an importance matrix.

    importance   float32 (matrices, row length), one vector for each stacked matrix
    height       rows of one matrix
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
    def needs(self) -> Needs:
        """See `Encoder`."""
        return Needs(set(), {(self.type, True)})


class FactorsOf(Protocol):
    """The factors of each of the stacked matrices of a tensor."""

    def __getitem__(self, matrix: int, /) -> MomentFactor:
        """Those of one matrix."""


@dataclass(frozen=True, eq=False)
class FeedbackEncoder:
    """Rounding with error feedback.

    factors   gives the factors of the second moment of the inputs of a stacked matrix
    height    rows of one matrix
    """

    type: BlockType
    factors: FactorsOf
    height: int
    effort: Effort

    def encode(self, values: Floats, start: int, out: Bytes) -> None:
        """See `Encoder`."""
        quantize_with_feedback(values, self.type, self.factors[start // self.height], self.effort, out)

    @property
    def needs(self) -> Needs:
        """See `Encoder`."""
        return Needs(set(), set())


@dataclass(frozen=True, eq=False)
class TwoSidedEncoder:
    """Rounding with error feedback between columns and between rows.

    columns      the same between columns only
    row_factor   makes the factor of the second moment of the output's gradients
    """

    columns: FeedbackEncoder
    row_factor: Callable[[], RowFactor]

    def encode(self, values: Floats, start: int, out: Bytes) -> None:
        """See `Encoder`."""
        own = self.columns
        quantize_two_sided(values, own.type, own.factors[start // own.height], self.row_factor(), own.effort, out)

    @property
    def needs(self) -> Needs:
        """See `Encoder`."""
        return Needs(set(), set(), matrices=True)


@dataclass(frozen=True)
class ExactEncoder:
    """Packs weights that lie on the grid of the type so that their round trip is exact.

    Blocks are first quantized by `otherwise`. Those whose round trip is not exact are then repacked: `rows.repack_inexact`.
    """

    otherwise: ReferenceEncoder | ImportanceEncoder
    source_type: BlockType

    def encode(self, values: Floats, start: int, out: Bytes) -> None:
        """See `Encoder`."""
        self.otherwise.encode(values, start, out)
        rows.repack_inexact(values, self.otherwise.type, self.source_type, out)

    @property
    def needs(self) -> Needs:
        """See `Encoder`."""
        return Needs({self.otherwise.type}, self.otherwise.needs.encoded)


def encoder_for(planned: PlannedTensor, imatrix: Imatrix | None) -> Encoder | None:
    """The encoder of a planned tensor; None if its bytes are copied."""
    if planned.type is planned.source_type:
        return None
    encoder: ReferenceEncoder | ImportanceEncoder = ReferenceEncoder(planned.type)
    if imatrix is not None and planned.importance:
        matrices = stacked_matrices(planned.shape)
        encoder = ImportanceEncoder(planned.type, imatrix.values(planned.name, matrices), planned.shape[-2])
    return ExactEncoder(encoder, planned.source_type) if planned.exact else encoder
