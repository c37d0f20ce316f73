"""Decodes rows of a checkpoint to float32: plain types, small floats, packed codes.

Everything here is thread-safe and needs memory of about the size of the requested rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import ELEMENT_TYPES, OPAQUE_TYPES, TYPES, BlockType
from quantcli.core.errors import UnsupportedError
from quantcli.tensors.bfloat16 import bfloat16_to_float32
from quantcli.tensors.tensor import OpaqueTensor, StoredTensor, Tensor

Floats = NDArray[np.float32]

# --- small floats ---------------------------------------------------------------------------------------------------------


def small_floats(exponent_bits: int, mantissa_bits: int, bias: int) -> Floats:
    """The values of all bit patterns of a float format, in order. All patterns are finite: no infinities and no NaN."""
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    exponent = codes >> mantissa_bits & ((1 << exponent_bits) - 1)
    fraction = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    magnitude = np.ldexp(fraction + (exponent > 0), np.maximum(exponent, 1) - bias)
    values: Floats = np.where(codes >> (exponent_bits + mantissa_bits), -magnitude, magnitude).astype(np.float32)
    return values


def _with(table: Floats, values: Mapping[int, float]) -> Floats:
    table[list(values)] = list(values.values())
    return table


_E5M2_SPECIAL: Final = {
    sign | code: value
    for sign, infinity in ((0, np.inf), (0x80, -np.inf))
    for code, value in ((0x7C, infinity), (0x7D, np.nan), (0x7E, np.nan), (0x7F, np.nan))
}

FLOAT_TABLES: Final[Mapping[str, Floats]] = MappingProxyType(
    {
        "F8_E4M3": _with(small_floats(4, 3, 7), {0x7F: np.nan, 0xFF: np.nan}),
        "F8_E5M2": _with(small_floats(5, 2, 15), _E5M2_SPECIAL),
        "F8_E4M3FNUZ": _with(small_floats(4, 3, 8), {0x80: np.nan}),
        "F8_E5M2FNUZ": _with(small_floats(5, 2, 16), {0x80: np.nan}),
        "F8_E8M0": _with(np.ldexp(np.float32(1), np.minimum(np.arange(256), 254) - 127), {0xFF: np.nan}),
    }
)
"""Element type -> the value of each byte. Source: "OCP 8-bit Floating Point Specification", its FNUZ
variants as in ml_dtypes, and for E8M0 "OCP Microscaling Formats (MX) Specification"."""

E2M1: Final = small_floats(2, 1, 1)
"""The four-bit float of MXFP4 and NVFP4."""

E2M3: Final = small_floats(2, 3, 1)
"""The six-bit float of MXFP6 in compressed-tensors."""

# --- bytes to numbers -----------------------------------------------------------------------------------------------------

_SAME_WIDTH: Final = {1: "I8", 2: "I16", 4: "I32", 8: "I64"}


def as_bits(tensor: Tensor) -> Tensor:
    """The tensor; a tensor of a type that GGUF does not have is reinterpreted as integers of the same width.

    Raises:
        UnsupportedError: if there are no integers of that width.
    """
    if tensor.type.name not in OPAQUE_TYPES:
        return tensor
    if tensor.type.block_length > 1 or tensor.type.block_bytes not in _SAME_WIDTH:
        raise _no_numbers(tensor.type)
    kind: BlockType = TYPES[_SAME_WIDTH[tensor.type.block_bytes]]
    if isinstance(tensor, OpaqueTensor):
        return StoredTensor(tensor.name, tensor.shape, kind, tensor.file, tensor.offset)
    return replace(tensor, type=kind)


def read_raw(tensor: Tensor, start: int, stop: int) -> NDArray[Any]:
    """Rows without decoding, `(stop - start, row length)`, in the layout of their type, or of `as_bits`."""
    source = as_bits(tensor)
    out = np.empty((stop - start, source.row_bytes), np.uint8)
    source.read(start, stop, out)
    return out.view(source.type.layout)


def read_small(tensor: Tensor) -> NDArray[Any]:
    """A whole small tensor without decoding, `(size,)`: for tensors that, like a header, describe others."""
    source = as_bits(tensor)
    if isinstance(source, StoredTensor):
        return np.frombuffer(source.file.read(source.offset, source.nbytes), source.type.layout)
    return read_raw(source, 0, source.rows).reshape(-1)


def read_floats(tensor: Tensor, start: int, stop: int) -> Floats:
    """Rows cast to float32, `(stop - start, row length)`, from any float or integer type."""
    return to_floats(read_raw(tensor, start, stop), tensor.type)


def to_floats(raw: NDArray[Any], kind: BlockType) -> Floats:
    """Cast `raw`, bits of type `kind`, to float32.

    Raises:
        UnsupportedError: for booleans, complex numbers and floats narrower than a byte.
    """
    if kind.name in FLOAT_TABLES:
        return np.take(FLOAT_TABLES[kind.name], raw.view(np.uint8))
    if kind.name == "BF16":
        return bfloat16_to_float32(raw)
    if kind.name not in _PLAIN:
        raise _no_numbers(kind)
    return raw.view(_PLAIN[kind.name]).astype(np.float32)


_PLAIN: Final = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip
"""Element type -> NumPy type."""

INTEGERS: Final = tuple(name for name in _PLAIN if name[0] in "IU")
FLOATS: Final = ("F64", "F32", "F16", "BF16", *FLOAT_TABLES)
SCALES: Final = (*FLOATS, "U8")
"""The types of scales in methods that store powers of two as exponents in U8. See `exponents`."""


def exponents(scales: Tensor) -> Tensor:
    """Reinterpret U8 scales, which are exponents, as F8_E8M0. Other types are unchanged."""
    return replace(scales, type=ELEMENT_TYPES["F8_E8M0"]) if scales.type.name == "U8" else scales


def _no_numbers(kind: BlockType) -> UnsupportedError:
    known = ", ".join((*FLOATS, *INTEGERS))
    return UnsupportedError(f"numbers stored as {kind.name} are not supported, only {known}")


def with_rows(tensor: Tensor, length: int) -> Tensor:
    """The tensor reshaped to rows of `length` elements, which divides its size."""
    shape = (tensor.size // length, length)
    if isinstance(tensor, StoredTensor):
        return replace(tensor, shape=shape)
    return _WithRows(tensor.name, shape, tensor.type, tensor)


@dataclass(frozen=True)
class _WithRows(Tensor):
    """A tensor reshaped to rows of another length."""

    source: Tensor

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """See `Tensor.read`. The source rows that contain the elements are read whole."""
        first, last = start * self.row_length, stop * self.row_length
        top, bottom = first // self.source.row_length, -(-last // self.source.row_length)
        covering = read_raw(self.source, top, bottom).reshape(-1)
        skipped = first - top * self.source.row_length
        out.view(self.type.layout).reshape(-1)[...] = covering[skipped : skipped + last - first]


def words_as_bytes(words: Tensor) -> Tensor:
    """A tensor of words viewed as bytes, U8 `(..., row bytes)`.

    Raises:
        ValueError: if the tensor is not contiguous in a file.
    """
    if not isinstance(words, StoredTensor):
        raise ValueError(f"{words.name} is not contiguous in the file")
    shape = (*words.shape[:-1], words.row_bytes)
    return OpaqueTensor(words.name, shape, ELEMENT_TYPES["U8"], words.file, words.offset)


# --- packed codes ---------------------------------------------------------------------------------------------------------


def _spread(bits: int) -> NDArray[Any]:
    """Byte -> its `8 / bits` codes, one in each byte of an integer, the lowest first."""
    codes = np.arange(256)[:, None] >> np.arange(0, 8, bits) & ((1 << bits) - 1)
    return codes.astype(np.uint8).view(f"<u{8 // bits}").reshape(-1)


_SPREAD: Final = {bits: _spread(bits) for bits in (1, 2, 4)}


def unpack(words: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """The first `count` codes of each row of `words` `(rows, n)`, uint8 `(rows, count)`.

    Each row is a bit stream of codes of `bits` bits, 1 to 8, from the lowest bit of the first word on.
    """
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data[:, :count]
    if bits in _SPREAD:
        return np.take(_SPREAD[bits], data).view(np.uint8)[:, :count]
    # Eight codes of n bits take n bytes.
    groups = -(-count // 8)
    stream = np.zeros((len(data), groups * bits), np.uint8)
    held = min(stream.shape[1], data.shape[1])
    stream[:, :held] = data[:, :held]
    octets = np.zeros((len(data), groups), np.uint64)
    for place in range(bits):
        octets |= stream[:, place::bits].astype(np.uint64) << np.uint64(8 * place)
    codes = octets[:, :, None] >> np.arange(0, 8 * bits, bits, dtype=np.uint64)
    return (codes.astype(np.uint8) & np.uint8((1 << bits) - 1)).reshape(len(data), -1)[:, :count]


def integers(bits: int, zero: int = 0) -> Floats:
    """The table of unsigned codes with the zero point `zero`: code - zero."""
    return (np.arange(1 << bits) - zero).astype(np.float32)


SIGNED_FOUR_BITS: Final = np.array([*range(8), *range(-8, 0)], np.float32)
"""Four-bit code -> its value in two's complement."""

# --- lazy matrices --------------------------------------------------------------------------------------------------------


class Numbers(ABC):
    """A lazy float32 matrix: rows are decoded on demand."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Floats:
        """The rows `start:stop` as a new array."""


@dataclass(frozen=True)
class Plain(Numbers):
    """The rows of a tensor of any type of `read_floats`, with `function` applied."""

    source: Tensor
    function: Callable[[Floats], Floats] | None = None

    def rows(self, start: int, stop: int) -> Floats:
        """See `Numbers.rows`."""
        values = read_floats(self.source, start, stop)
        return values if self.function is None else self.function(values)


@dataclass(frozen=True)
class Packed(Numbers):
    """Codes of `bits` bits packed along the rows of `source`, `length` in a row. `table` dequantizes them."""

    source: Tensor
    bits: int
    length: int
    table: Floats = field(repr=False, compare=False)

    def rows(self, start: int, stop: int) -> Floats:
        """See `Numbers.rows`."""
        return np.take(self.table, unpack(read_raw(self.source, start, stop), self.bits, self.length))


@dataclass(frozen=True)
class PackedRows(Numbers):
    """Codes packed along the columns of `source`: each column is a bit stream, as in `unpack`, with a code for each row."""

    source: Tensor
    bits: int
    table: Floats = field(repr=False, compare=False)

    def rows(self, start: int, stop: int) -> Floats:
        """See `Numbers.rows`."""
        # At every row that is a multiple of the word's bits, a code begins at the first bit of a word.
        word = 8 * self.source.type.block_bytes
        above = start // word * word
        words = read_raw(self.source, above * self.bits // word, min(self.source.rows, -(-stop * self.bits // word)))
        codes = unpack(words.T, self.bits, stop - above)[:, start - above :]
        return np.take(self.table, codes.T)
