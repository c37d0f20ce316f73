"""How products read each block type: a file per family, named as under `blocks/`, with its types in `DOTS`."""

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
class Levels:
    """Scales and minimums that are integers times numbers of the block: `inline` functions likewise.

    levels(weights, offset)     an int16 lane per group
    scale(weights, offset)      what they are multiples of, float32
    lows(weights, offset)       likewise of minimums; None where there are none
    low_scale(weights, offset)

    Sums of four products with codes, times a level, are summed up for a block within an int32.
    """

    levels: Callable[..., Any]
    scale: Callable[..., Any]
    lows: Callable[..., Any] | None = None
    low_scale: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class PackedDot:
    """How `matmul` reads a packed type: `inline` functions on the bytes of a matrix, given the byte `offset` of a block.

    codes(weights, offset, part)   the weights 32 * part to 32 * part + 31 of the block as 32 integers: a vector of uint8,
                                   at most 128, or where `signed`, of int8
    scales(weights, offset)        what the codes stand for, a float32 lane per `group` weights of the block
    minimums(weights, offset)      likewise; None where there are none
    scale_half                     where a block has one scale, which is a half as it is stored: its byte
    apart                          part p and part p + `apart` are read together in the least time: a power of two
    whole                          where they are known in integers and codes are unsigned: those (see `pieces.leveled`)

    weight = scales[g] * (code - zero) - minimums[g]. `group` is 16 or 32.
    """

    codes: Callable[..., Any]
    scales: Callable[..., Any]
    group: int
    zero: int = 0
    minimums: Callable[..., Any] | None = None
    signed: bool = False
    whole: Levels | None = None
    apart: int = 1
    scale_half: int | None = None


def dot(block_type: BlockType) -> PlainDot | PackedDot:
    """How to read a type's weights, from its family's file.

    Raises:
        ValueError: for a type that nothing multiplies by.
    """
    if block_type.family is None or block_type.activation is None:
        raise ValueError(f"no matrix product with {block_type.name} weights")
    dots: Mapping[str, PlainDot | PackedDot] = import_module(f"{__name__}.{block_type.family}").DOTS
    return dots[block_type.name]
