"""Importance matrices as they are collected: sums of squared activations and counts of tokens. Merged, written, read.

The layouts are those of llama.cpp's `tools/imatrix/imatrix.cpp`. `formats.imatrix` reads the means that quantization needs.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES
from quantcli.core.errors import FormatError
from quantcli.formats.gguf.reader import open_gguf
from quantcli.formats.gguf.spec import Metadata, ValueType, array, encode_string, string, u32
from quantcli.formats.gguf.writer import GGUFWriter
from quantcli.formats.imatrix import (
    CHUNK_COUNT,
    CHUNK_SIZE,
    COUNTS,
    DATASETS,
    SUMS,
    Imatrix,
    imatrix_of_sums,
    raw_entry,
    raw_names,
)
from quantcli.formats.output_file import OutputFile
from quantcli.tensors.tensor import TensorInfo

Floats = NDArray[np.float32]

MADE_FROM: Final = ("model", "tokens")
_MADE_FROM: Final = "quantcli.imatrix."
"""The keys of what an importance matrix is made from begin with this. Other readers ignore them."""

FEW_TOKENS: Final = 256
"""With fewer tokens the statistics of an expert are poor. Rounding with error feedback then relies on those of all experts
of its layer for the most part."""


@dataclass(frozen=True, eq=False)
class Sums:
    """The sums of a tensor.

    squares  float32 (matrices, n): the sums over tokens of the squared inputs, for each expert; (1, n) for one matrix, and
             (1, heads * n) for a matrix of each head
    counts   float32 (matrices,): tokens
    """

    squares: Floats
    counts: Floats


@dataclass(frozen=True, eq=False)
class ImatrixSums:
    """An importance matrix as sums.

    datasets    the calibration texts, in order
    chunks      chunks of text
    chunk_size  tokens in a chunk
    entries     tensor name -> its sums
    made_from   what an interrupted run compares: the digests of the model and of the tokens; empty where they are unknown
    """

    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    entries: Mapping[str, Sums]
    made_from: Mapping[str, str] = field(default_factory=dict)

    def unused(self) -> dict[str, list[int]]:
        """Tensor name -> the stacked matrices (experts) that no token reached."""
        return self._experts(0, 1)

    def scarce(self) -> dict[str, list[int]]:
        """Tensor name -> the stacked matrices (experts) that some tokens reached, but fewer than `FEW_TOKENS`."""
        return self._experts(1, FEW_TOKENS)

    def _experts(self, least: int, below: int) -> dict[str, list[int]]:
        """Tensor name -> the stacked matrices that so many tokens reached."""
        found = {
            name: np.flatnonzero((sums.counts >= least) & (sums.counts < below)).tolist()
            for name, sums in self.entries.items()
            if len(sums.counts) > 1 or not sums.counts.any()
        }
        return {name: indices for name, indices in found.items() if indices}

    def means(self, path: str) -> Imatrix:
        """The importance matrix that quantization takes. `path` is the name by which it is called, in the place of a file.

        Raises:
            ValueRangeError: if all values of a tensor are zero.
        """
        sums = ((name, entry.squares, entry.counts) for name, entry in self.entries.items())
        return imatrix_of_sums(path, self.datasets, self.chunks, sums)


def read_sums(path: str | PathLike[str]) -> ImatrixSums:
    """Read an importance matrix in the GGUF layout, with its sums.

    Raises:
        FormatError: if it is not such a file. The older layout does not have sums of single experts.
    """
    with open_gguf(path) as file:
        names = raw_names(file)
        digests = {what: file.get(_MADE_FROM + what) for what in MADE_FROM}
        return ImatrixSums(
            tuple(file.get(DATASETS)), int(file.get(CHUNK_COUNT)), int(file.get(CHUNK_SIZE)),
            {name: Sums(*raw_entry(file, name)) for name in names},
            {what: digest for what, digest in digests.items() if isinstance(digest, str)},
        )  # fmt: skip


def merge_sums(parts: Sequence[tuple[str, ImatrixSums]]) -> ImatrixSums:
    """Add importance matrices, each given with its name for messages.

    Raises:
        FormatError: for matrices of other models: a tensor of another size, or other chunks.
    """
    (_, first), *_ = parts
    entries: dict[str, Sums] = {}
    for name, part in parts:
        if part.chunk_size != first.chunk_size:
            what = f"chunks of {part.chunk_size} tokens, expected {first.chunk_size} as in the others"
            raise FormatError(name, what)
        for tensor, sums in part.entries.items():
            known = entries.get(tensor)
            if known is not None and known.squares.shape != sums.squares.shape:
                found, expected = sums.squares.shape, known.squares.shape
                raise FormatError(name, f"tensor {tensor!r} has sums {found}, expected {expected}: is it another model's?")
            entries[tensor] = sums if known is None else Sums(known.squares + sums.squares, known.counts + sums.counts)
    datasets = tuple(dataset for _, part in parts for dataset in part.datasets)
    made_from = first.made_from if len(parts) == 1 else {}
    return ImatrixSums(datasets, sum(part.chunks for _, part in parts), first.chunk_size, entries, made_from)


def write_sums(path: str | PathLike[str], imatrix: ImatrixSums, *, overwrite: bool = False) -> None:
    """Write the GGUF layout, which llama-quantize reads.

    Raises:
        OutputError: if the file cannot be written, or exists (unless `overwrite`).
    """
    metadata: Metadata = {
        "general.type": string("imatrix"),
        DATASETS: array(ValueType.STRING, list(imatrix.datasets)),
        CHUNK_COUNT: u32(imatrix.chunks),
        CHUNK_SIZE: u32(imatrix.chunk_size),
        **{_MADE_FROM + what: string(digest) for what, digest in imatrix.made_from.items()},
    }
    data: list[tuple[TensorInfo, Floats]] = []
    for name, sums in sorted(imatrix.entries.items()):
        data.append((TensorInfo(name + SUMS, sums.squares.shape, TYPES["F32"]), sums.squares))
        data.append((TensorInfo(name + COUNTS, (len(sums.counts), 1), TYPES["F32"]), sums.counts))
    with GGUFWriter(path, metadata, [info for info, _ in data], overwrite=overwrite) as writer:
        for index, (_, values) in enumerate(data):
            writer.write(index, 0, np.ascontiguousarray(values, np.float32).view(np.uint8).reshape(-1))


def write_legacy(path: str | PathLike[str], imatrix: ImatrixSums, *, overwrite: bool = False) -> None:
    """Write the older layout: means over tokens, times the number of chunks that reached the tensor. An expert without
    tokens has ones, and a tensor without tokens is left out.

    Raises:
        OutputError: as `write_sums`.
    """
    data = _encode_legacy(imatrix)
    with OutputFile(path, len(data), overwrite=overwrite) as file:
        file.write_at(memoryview(data), 0)


def _encode_legacy(imatrix: ImatrixSums) -> bytes:
    kept = [(name, sums) for name, sums in sorted(imatrix.entries.items()) if sums.counts.any()]
    parts = [struct.pack("<i", len(kept))]
    for name, sums in kept:
        calls = -(-int(sums.counts.max()) // imatrix.chunk_size)
        counts = sums.counts[:, None]
        ones = np.ones_like(sums.squares)
        means = np.divide(sums.squares, counts, out=ones, where=counts > 0) * np.float32(calls)
        text = encode_string(name)
        parts += [struct.pack("<i", len(text)), text, struct.pack("<ii", calls, means.size), means.astype("<f4").tobytes()]
    dataset = encode_string(imatrix.datasets[-1] if imatrix.datasets else "")
    return b"".join([*parts, struct.pack("<ii", imatrix.chunks, len(dataset)), dataset])


