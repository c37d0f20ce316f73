"""Read importance matrices: for each column of a tensor, the mean square of the activations that it is multiplied with.

Two layouts exist. Since 2025 an importance matrix is a GGUF file with two tensors for each tensor of the model: the sums of
squared activations, and their counts. The older layout is a sequence of entries, usually called `.dat`. Source:
`common/imatrix-loader.cpp` and `tools/quantize/quantize.cpp` of llama.cpp, whose float arithmetic is reproduced to the bit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.errors import FormatError, ValueRangeError
from quantcli.formats.gguf.reader import GGUFFile, open_gguf
from quantcli.formats.gguf.spec import MAGIC, Metadata, ValueType, decode_string, encode_string, string, u32
from quantcli.tensors.files import InputFile
from quantcli.tensors.tensor import Tensor

SUMS: Final = ".in_sum2"
COUNTS: Final = ".counts"
"""The suffixes of a tensor's sums and counts."""
DATASETS: Final = "imatrix.datasets"
CHUNK_COUNT: Final = "imatrix.chunk_count"
CHUNK_SIZE: Final = "imatrix.chunk_size"
_REQUIRED_KEYS: Final[Mapping[str, tuple[ValueType, ValueType | None]]] = MappingProxyType(
    {
        DATASETS: (ValueType.ARRAY, ValueType.STRING),
        CHUNK_COUNT: (ValueType.UINT32, None),
        CHUNK_SIZE: (ValueType.UINT32, None),
    }
)
"""The metadata keys that an importance matrix must have, and their types."""

_LONGEST_STRING: Final = 127
"""The bytes that llama-quantize keeps of strings about an importance matrix."""

Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Imatrix:
    """An importance matrix.

    path       the file, as it was named
    datasets   the calibration texts it was computed from
    chunks     the number of chunks of text, 0 if unknown
    entries    tensor name -> float32 values, finite and not negative: (n,) for rows of `n` weights, (experts, n) for
               stacked experts, in the old layout (experts * n,)
    """

    path: str
    datasets: tuple[str, ...]
    chunks: int
    entries: Mapping[str, Values]

    @property
    def sizes(self) -> dict[str, int]:
        """Tensor name -> the number of its values."""
        return {name: values.size for name, values in self.entries.items()}

    def values(self, name: str, matrices: int) -> Values:
        """The values for the tensor `name`, float32 `(matrices, n)`, one row for each of its stacked matrices.

        Raises:
            KeyError: if it has none.
        """
        return self.entries[name].reshape(matrices, -1)

    def metadata(self) -> Metadata:
        """The metadata that llama-quantize writes about an importance matrix, in its order."""
        notes = {"quantize.imatrix.file": string(_shortened(self.path))}
        if self.datasets:
            notes["quantize.imatrix.dataset"] = string(_shortened(self.datasets[0]))
        notes["quantize.imatrix.entries_count"] = u32(len(self.entries))
        if self.chunks > 0:
            notes["quantize.imatrix.chunks_count"] = u32(self.chunks)
        return notes


def read_imatrix(path: str | PathLike[str]) -> Imatrix:
    """Read an importance matrix of either layout.

    Raises:
        FormatError: if the file is missing, truncated, or not an importance matrix.
        ValueRangeError: if a value is negative or not finite, or if all values of a tensor are zero.
    """
    # NaN and infinity are checked for after reading.
    with InputFile(path) as file, np.errstate(all="ignore"):
        if file.size >= len(MAGIC) and file.read(0, len(MAGIC)) == MAGIC:
            imatrix = _read_gguf(path)
        else:
            imatrix = _read_legacy(path, file.read(0, file.size))
    return _checked(imatrix)


def imatrix_of_sums(
    path: str, datasets: Sequence[str], chunks: int, sums: Iterable[tuple[str, Values, Values]]
) -> Imatrix:
    """The importance matrix of sums in memory: names, sums of squares `(matrices, n)` and counts `(matrices,)`.

    It is the one that would be read from a file with these sums. `path` is the name by which the metadata and messages
    call it.

    Raises:
        ValueRangeError: as `read_imatrix`.
    """
    with np.errstate(all="ignore"):
        entries = {name: _normalized(squares, counts) for name, squares, counts in sums}
    return _checked(Imatrix(path, tuple(datasets), chunks, dict(sorted(entries.items()))))


def _checked(imatrix: Imatrix) -> Imatrix:
    for name, values in imatrix.entries.items():
        _check_values(imatrix.path, name, values)
    return imatrix


def _shortened(text: str) -> str:
    return decode_string(encode_string(text)[:_LONGEST_STRING])


def _check_values(path: str | PathLike[str], name: str, values: Values) -> None:
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if bad.size:
        what = f"importance {values.reshape(-1)[bad[0]]} at index {bad[0]}, expected a finite number, zero or greater"
        raise ValueRangeError(f"{fspath(path)}: tensor {name!r}: {what}", hint="compute the importance matrix again")
    if values.size and not values.any():
        what = "all importance values are zero, so no weight would have importance"
        raise ValueRangeError(f"{fspath(path)}: tensor {name!r}: {what}", hint="compute the importance matrix again")


def raw_names(file: GGUFFile) -> list[str]:
    """The tensors that an importance matrix in the GGUF layout has entries for, sorted.

    Raises:
        FormatError: if the file is no importance matrix, or has no entries.
    """
    if file.get("general.type") != "imatrix":
        found = f"a GGUF file whose general.type is {file.get('general.type')!r}"
        raise FormatError(file.path, f"expected an importance matrix, found {found}")
    for key, (kind, element) in _REQUIRED_KEYS.items():
        entry = file.metadata.get(key)
        if entry is None or (entry.type, entry.element) != (kind, element):
            raise FormatError(file.path, f"an importance matrix with a wrong {key}, or without one")
    names = {name.removesuffix(end) for name in file.tensors for end in (SUMS, COUNTS) if name.endswith(end)}
    if not names:
        raise FormatError(file.path, "an importance matrix without entries")
    return sorted(names)


def raw_entry(file: GGUFFile, name: str) -> tuple[Values, Values]:
    """The sums of squares `(matrices, n)` of a tensor and its counts, float32 `(matrices,)`.

    Raises:
        FormatError: if they do not belong together.
        ValueRangeError: for a count that is not finite.
    """
    sums, counts = (_floats(file, name, suffix).reshape(-1) for suffix in (SUMS, COUNTS))
    if not counts.size or sums.size % counts.size:
        raise FormatError(file.path, f"tensor {name!r}: {sums.size} sums do not divide into {counts.size} counts")
    if not np.isfinite(counts).all():
        raise ValueRangeError(f"{file.path}: tensor {name!r}: a count that is not finite")
    return sums.reshape(counts.size, -1), counts


def _read_gguf(path: str | PathLike[str]) -> Imatrix:
    with open_gguf(path) as file:
        names = raw_names(file)
        return Imatrix(
            path=fspath(path),
            datasets=tuple(file.get(DATASETS)),
            chunks=int(file.get(CHUNK_COUNT)),
            entries={name: _normalized(*raw_entry(file, name)) for name in names},
        )


def _normalized(sums: Values, counts: Values) -> Values:
    """The mean square of each column: sums divided by counts, in float32; 1 for experts that were never used."""
    # C's lround: ties away from zero. A negative count is taken as zero.
    whole = np.floor(counts.astype(np.float64) + 0.5).astype(np.float32)[:, None]
    means = np.divide(sums, whole, out=np.ones_like(sums), where=whole > 0)
    return means[0] if counts.size == 1 else means


def _floats(file: GGUFFile, name: str, suffix: str) -> Values:
    tensor: Tensor | None = file.tensors.get(name + suffix)
    if tensor is None or tensor.type.name != "F32":
        found = "none" if tensor is None else f"one of {tensor.type.name}"
        raise FormatError(file.path, f"tensor {name!r}: expected an F32 tensor {name + suffix!r}, found {found}")
    if not tensor.size:
        raise FormatError(file.path, f"tensor {name + suffix!r} is empty: its shape is {tensor.shape}")
    return np.asarray(tensor.load(), np.float32)


def _read_legacy(path: str | PathLike[str], data: bytes) -> Imatrix:
    reader = _LegacyReader(path, data)
    count = reader.integer("the number of entries")
    if count < 1:
        raise FormatError(path, "neither a GGUF file nor an importance matrix of the old layout", offset=0)
    entries: dict[str, Values] = {}
    for index in range(count):
        name = reader.string(f"the name of entry {index}")
        calls = reader.integer(f"the calls of {name!r}")
        sums = reader.floats(f"the values of {name!r}")
        entries[name] = sums / np.float32(calls) if calls > 0 else sums
    chunks, dataset = 0, ""
    # Older files end here.
    if not reader.at_end:
        chunks = reader.integer("the number of chunks")
        dataset = "" if reader.at_end else reader.string("the name of the dataset")
    return Imatrix(fspath(path), (dataset,) if dataset else (), chunks, entries)


class _LegacyReader:
    """A reader of a file in the old layout, little-endian, which checks every read against the end of the file."""

    def __init__(self, path: str | PathLike[str], data: bytes) -> None:
        self._path = Path(path)
        self._data = data
        self._position = 0

    @property
    def at_end(self) -> bool:
        return self._position == len(self._data)

    def integer(self, what: str) -> int:
        value: int = struct.unpack("<i", self._take(4, what))[0]
        return value

    def string(self, what: str) -> str:
        return decode_string(self._counted(1, what))

    def floats(self, what: str) -> Values:
        data = self._counted(4, what)
        if not data:
            raise FormatError(self._path, f"{what}: there are none", offset=self._position)
        return np.frombuffer(data, "<f4").astype(np.float32)

    def _counted(self, size: int, what: str) -> bytes:
        """Items of `size` bytes, after an integer with their count."""
        return self._take(self.integer(f"the length of {what}") * size, what)

    def _take(self, count: int, what: str) -> bytes:
        start, left = self._position, len(self._data) - self._position
        if not 0 <= count <= left:
            found = f"{what} takes {count} bytes, {left} left in the file"
            raise FormatError(self._path, f"not an importance matrix, or cut short: {found}", offset=start)
        self._position = start + count
        return self._data[start : self._position]
