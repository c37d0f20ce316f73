"""What a report shows: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from quantcli.core.block_types import BlockType
from quantcli.quality.evaluate import TextEvaluation
from quantcli.quality.tensor_errors import TensorError

OUTSIDE: Final = -1
"""The layer of tensors outside all layers."""


@dataclass(frozen=True)
class ReportTensor:
    """A tensor of a file.

    layer        its block; `OUTSIDE` for the embedding, the output and others
    part         its name within the layer, without `.weight`: `attn_q`
    is_matrix    whether it has two dimensions or more
    reason       why a recipe's rules give it this type; empty where no recipe explains it
    """

    name: str
    layer: int
    part: str
    type: BlockType
    weights: int
    nbytes: int
    is_matrix: bool
    reason: str


@dataclass(frozen=True)
class ReportFile:
    """A file of the model.

    label        a short name, different from those of the other files
    recipe       the name of its file type, or None
    facts        label and text of what its metadata say
    errors       by name, how tensors differ from those of the base
    """

    path: str
    label: str
    title: str
    file_bytes: int
    parameters: int
    recipe: str | None
    facts: tuple[tuple[str, str], ...]
    tensors: tuple[ReportTensor, ...]
    errors: Mapping[str, TensorError] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight."""
        return 8 * sum(tensor.nbytes for tensor in self.tensors) / max(1, self.parameters)


@dataclass(frozen=True)
class ReportText:
    """A text, or a subject, with the evaluation of all files on it, in the order of the files."""

    name: str
    result: TextEvaluation


@dataclass(frozen=True)
class Report:
    """All of a report.

    base      the file that the others are compared with, or None
    context   tokens of a chunk of the texts
    origin    label and text of how the figures were made
    """

    title: str
    files: tuple[ReportFile, ...]
    base: ReportFile | None
    texts: tuple[ReportText, ...]
    context: int
    origin: tuple[tuple[str, str], ...]
