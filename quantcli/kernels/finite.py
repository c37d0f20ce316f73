"""Detect blocks with a non-finite number: a weight, a scale or a minimum that is NaN or infinite.

llama.cpp rejects a tensor with such a block as invalid, and so does the runner. Every stored floating-point number is
checked by its exponent bits, which are all ones exactly for NaN and infinity. Source: `ggml_validate_row_data` in
`ggml-quants.c`. NVFP4's scales have no such code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import TYPES, BlockType


class _Bits(NamedTuple):
    """A bit field of a block: the bits of `mask` in the word of NumPy type code `code` at byte `offset`. From the value
    `limit` on, the number is not finite."""

    offset: int
    code: str
    mask: int
    limit: int


_EXPONENT: Final[Mapping[str, tuple[int, int]]] = {
    "<f2": (0x7C00, 0x7C00),
    "<f4": (0x7F800000, 0x7F800000),
    # float64 is cast to float32 for computation, so the limit is 2**128.
    "<f8": (0x7FF0000000000000, (1023 + 128) << 52),
}
"""The exponent mask of each floating-point format, and the least masked value that is not finite."""


def _exponents(kind: BlockType) -> tuple[tuple[_Bits, ...], ...]:
    """The exponent fields in a block of this type, derived from its layout."""
    packing = (("", kind.packing),) if isinstance(kind.packing, str) else kind.packing
    return tuple(
        (_Bits(max(0, kind.offset(name)), code.replace("f", "u"), *_EXPONENT[code]),)
        for name, code, *_ in packing
        if code in _EXPONENT
    )


_IQ1_M_SCALES: Final = TYPES["IQ1_M"].offset("scales")

_EXPONENTS: Final[Mapping[str, tuple[tuple[_Bits, ...], ...]]] = {
    **{name: _exponents(kind) for name, kind in TYPES.items()},
    "BF16": ((_Bits(0, "<u2", 0x7F80, 0x7F80),),),
    "MXFP4": ((_Bits(TYPES["MXFP4"].offset("e"), "u1", 0xFF, 0xFF),),),
    # The float16 scale is stored in the highest four bits of each of four words.
    "IQ1_M": ((_Bits(_IQ1_M_SCALES + 4, "<u2", 0xC000, 0xC000), _Bits(_IQ1_M_SCALES + 6, "<u2", 0x7000, 0x7000)),),
}
"""The exponents in a block of each type, each as a tuple of the bit fields that hold it."""


def first_not_finite(data: NDArray[np.uint8], kind: BlockType) -> int:
    """The index of the first block of `data` that holds NaN or infinity; -1 where none does.

    `data` is a C-contiguous uint8 array of whole blocks of type `kind`; blocks are counted in C order.
    """
    if not data.size:
        return -1
    found = (_first_at_limit(data, kind, exponent) for exponent in _EXPONENTS[kind.name])
    return min((block for block in found if block >= 0), default=-1)


def _first_at_limit(data: NDArray[np.uint8], kind: BlockType, exponent: tuple[_Bits, ...]) -> int:
    """The first block in which all bits of an exponent reach their limits, or -1."""
    count = data.size // kind.block_bytes
    words: list[NDArray[np.unsignedinteger]] = [
        np.ndarray((count,), code, data, offset, (kind.block_bytes,)) & np.dtype(code).type(mask)
        for offset, code, mask, _ in exponent
    ]
    # The maximum decides nearly every call, in half the time of a boolean comparison array.
    if any(int(word.max()) < bits.limit for word, bits in zip(words, exponent, strict=True)):
        return -1
    reached = np.logical_and.reduce([word >= bits.limit for word, bits in zip(words, exponent, strict=True)])
    return int(reached.argmax()) if reached.any() else -1
