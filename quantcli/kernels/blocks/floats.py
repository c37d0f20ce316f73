"""F32, F16, BF16, F64: plain floating-point types, cast number by number."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.kernels.blocks import Codec
from quantcli.kernels.blocks.reader import PlainReader
from quantcli.kernels.half import bfloat_to_float, float_to_bfloat, float_to_half, half_to_float
from quantcli.kernels.jit import inline, kernel
from quantcli.kernels.simd import LANES, convert, load, load_scalar, reinterpret, store


def _copy(x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    out[...] = x.view(np.uint8)


@inline
def _same(value: Any) -> Any:
    return value


def _encoder(encode: Any, stored: Any) -> Any:
    """A kernel that casts float32 rows to dtype `stored`."""

    @kernel
    def quantize(x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        source, target = x.reshape(-1), out.reshape(-1).view(stored)
        whole = source.size // LANES * LANES
        for start in range(0, whole, LANES):
            store(target, start, encode(load(source, start, LANES)))
        for place in range(whole, source.size):
            target[place] = encode(source[place])

    return quantize


def _reader(decode: Any, decode_one: Any, stored: Any) -> PlainReader:
    """The reader of elements of dtype `stored`, from decoders of a vector and of one number."""
    vector_bytes = LANES * np.dtype(stored).itemsize

    @inline
    def widen(weights: Any, offset: Any) -> Any:
        return decode(reinterpret(load(weights, offset, vector_bytes), stored))

    @inline
    def widen_one(weights: Any, offset: Any) -> Any:
        return decode_one(load_scalar(weights, offset, stored))

    return PlainReader(widen, widen_one)


@inline
def _to_float32(value: Any) -> Any:
    return convert(value, np.float32)


@kernel
def _widen(x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    source, target = x.reshape(-1), out.reshape(-1).view(np.float64)
    for place in range(source.size):
        target[place] = source[place]


def _codec(encode: Any, decode: Any, stored: Any) -> Codec:
    return Codec(_encoder(encode, stored), None, _reader(decode, decode, stored))


CODECS: Final = MappingProxyType(
    {
        "F32": Codec(_copy, None, _reader(_same, _same, np.float32)),
        "F16": _codec(float_to_half, half_to_float, np.uint16),
        "BF16": _codec(float_to_bfloat, bfloat_to_float, np.uint16),
        "F64": Codec(_widen, None, _reader(_to_float32, np.float32, np.float64)),
    }
)
