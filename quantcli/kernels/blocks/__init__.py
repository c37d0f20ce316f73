"""One file per family of block types. Each holds what its types compute, and lists it in `CODECS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from quantcli.kernels.types import BlockType


@dataclass(frozen=True, slots=True)
class PlainDot:
    """How `matmul` reads a plain type: `inline` functions on the bytes of a matrix.

    widen(weights, offset)       the `simd.LANES` weights from byte `offset` on, as a float32 vector
    widen_one(weights, offset)   the weight at byte `offset`, float32
    """

    widen: Callable[..., Any]
    widen_one: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class PackedDot:
    """How `matmul` reads a packed type: `inline` functions on the bytes of a matrix, given the byte `offset` of a block.

    codes(weights, offset, part)                the weights 32 * part to 32 * part + 31 of the block as 32 integers: a
                                                vector of uint8 (at most 128) or int8
    scales(weights, offset, scales, minimums)   writes what the codes stand for, float32, an entry per `group` weights:
                                                weight = scales[g] * code - minimums[g]

    `group` is 16 or 32. Where `affine` is false, `minimums` is left alone and counts as zero.
    """

    codes: Callable[..., Any]
    scales: Callable[..., None]
    group: int
    affine: bool


@dataclass(frozen=True, slots=True)
class Codec:
    """What a block type computes. All are serial kernels that release the GIL and keep no state.

    quantize(x, out)                        x float32 (rows, n), out uint8 (rows, bytes_per_row)
    quantize_weighted(x, importance, out)   importance float32 (n,); None where importance changes nothing
    dequantize(data, out)                   data uint8 (rows, bytes_per_row), out float32 (rows, n)
    dot                                     how `matmul` reads its weights: None where nothing multiplies by it

    `quantize` is None for the types the reference refuses to make without an importance matrix. All arrays are
    C-contiguous and n is a multiple of the block length; callers check, kernels do not.
    """

    quantize: Callable[..., None] | None
    quantize_weighted: Callable[..., None] | None
    dequantize: Callable[..., None]
    dot: PlainDot | PackedDot | None = None


def codec(block_type: BlockType) -> Codec:
    """The functions of a type, from its family's file.

    Raises:
        ValueError: for a type that is only stored.
    """
    if block_type.family is None:
        raise ValueError(f"{block_type.name} is only stored: nothing converts it")
    codecs: Mapping[str, Codec] = import_module(f"{__name__}.{block_type.family}").CODECS
    return codecs[block_type.name]
