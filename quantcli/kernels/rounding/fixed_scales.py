"""Codes rounded under fixed scales, for every type whose codes are scalars: the phase that rounding with error feedback
(GPTQ) drives column by column.

It is derived from a type's reader (weight = scale * (code - zero) - minimum) and its writer of codes. Weights are those of
`dequantize`, float32. Distances from them are compared in float64: in float32, different ones may round to the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType, block_type
from quantcli.kernels.blocks import codec
from quantcli.kernels.blocks.reader import PART, CodeWriter, PackedReader
from quantcli.kernels.jit import inline, kernel
from quantcli.kernels.shorthand import F32, I32, Bytes, Floats, Vec
from quantcli.kernels.simd import (
    absolute,
    convert,
    load,
    maximum,
    minimum,
    reinterpret,
    rint,
    select,
    shuffle,
    splat,
    store,
)

Round = Callable[[NDArray[np.float32], NDArray[np.uint8], int, int], None]
"""(x, data, start, stop): x float32 (rows, n), data uint8 (rows, bytes_per_row), both C-contiguous."""

_Nearest = Callable[[Vec, Vec, Vec], Vec]
"""An `inline` function of 32 values, scales and minimums, float32, to the nearest codes, float32."""

_MAX_GROUPS: Final = 16
"""Groups of weights with a scale of their own in a block, at most."""

_PLACES: Final = np.arange(PART, dtype=np.int32)
_INFINITY: Final = F32(np.inf)


def round_codes(
    x: NDArray[np.float32], data: NDArray[np.uint8], kind: str | BlockType, start: int = 0, stop: int | None = None
) -> None:
    """Round weights to the codes nearest to them under the scales and minimums that `data` has, in place.

    x      float32 (rows, n)
    data   uint8 (rows, bytes_per_row), C-contiguous: blocks of `kind`; their scales and minimums are kept
    start  the first column that is rounded; any column, within a block too
    stop   the column after the last one; None for n. The weights of all other columns are kept

    A weight is nearest as `dequantize` gives it. Of two equally near codes the even one is taken, or where levels are not
    evenly spaced and in Q1_0, the one that the reference's quantizer takes. A code stays as it is where a scale is zero or
    not finite, or a value NaN: no code is nearer than another. The call is serial and releases the GIL; the result does not
    depend on how rows are cut.

    Of a block with a rounded column all codes are packed again: a code of MXFP4 and NVFP4 that is a negative zero becomes a
    positive one, and a byte of TQ1_0 that no quantizer makes the one that is read alike.

    Raises:
        ValueError: for an unknown type or one whose codes stand for no single weight, an array of another shape or dtype,
            blocks that cannot be written in place, or columns outside the row.
    """
    target = kind if isinstance(kind, BlockType) else block_type(kind)
    function = rounder(target)
    if x.ndim != 2 or x.dtype != np.float32:
        raise ValueError(f"expected float32 rows (rows, n), got {x.dtype} {x.shape}")
    rows, length = x.shape
    shape = (rows, target.row_bytes(length))
    if data.shape != shape or data.dtype != np.uint8 or not data.flags.c_contiguous or not data.flags.writeable:
        raise ValueError(f"expected contiguous, writable uint8 blocks {shape}, got {data.dtype} {data.shape}")
    end = length if stop is None else stop
    if not 0 <= start <= end <= length:
        raise ValueError(f"expected columns within 0 to {length}, got {start} to {end}")
    function(np.ascontiguousarray(x), data, start, end)


@cache
def rounder(kind: BlockType) -> Round:
    """The serial kernel that rounds the codes of a type under fixed scales. It checks nothing, and releases the GIL.

    Raises:
        ValueError: for a type that is only stored, or whose codes stand for no single weight.
    """
    functions = codec(kind)
    reader, writer = functions.reader, functions.writer
    if writer is None or not isinstance(reader, PackedReader):
        raise ValueError(f"{kind.name} has no codes of single weights to round under fixed scales")
    return _derived(reader, writer, kind)


def _derived(reader: PackedReader, writer: CodeWriter, kind: BlockType) -> Round:
    codes_of, scales_of, minimums_of = reader.codes, reader.scales, reader.minimums or reader.scales
    length, block_bytes, has_minimums = kind.block_length, kind.block_bytes, reader.minimums is not None
    parts, part_groups, write = length // PART, PART // reader.group, writer.store
    spread: Any = shuffle(*(group for group in range(part_groups) for _ in range(reader.group)))
    nearest = _nearest_code(writer.codes, reader.zero)

    @inline
    def rounded(value: Any, old: Any, scales: Any, minimums: Any, first: Any, left: Any, right: Any) -> Any:
        few = load(scales, first, part_groups)
        scale = spread(few, few)
        few = load(minimums, first, part_groups)
        low = spread(few, few)
        code = convert(convert(nearest(value, scale, low), np.int32), np.uint8)
        places = load(_PLACES, 0, PART)
        chosen = (places >= splat(I32(left), PART)) & (places < splat(I32(right), PART)) & (absolute(value) <= _INFINITY)
        chosen = chosen & (scale != F32(0)) & (absolute(scale) < _INFINITY) & (absolute(low) < _INFINITY)
        return select(chosen, code, old)

    @kernel
    def round_rows(x: Floats, data: Bytes, start: int, stop: int) -> None:
        rows, n = x.shape
        values, packed, row_blocks = x.reshape(-1), data.reshape(-1), n // length
        scales, minimums = np.zeros(_MAX_GROUPS, np.float32), np.zeros(_MAX_GROUPS, np.float32)
        codes = np.empty(length, np.uint8)
        for row in range(rows):
            for block in range(start // length, (stop + length - 1) // length if start < stop else 0):
                number = row * row_blocks + block
                offset = number * block_bytes
                store(scales, 0, scales_of(packed, offset))
                if has_minimums:
                    store(minimums, 0, minimums_of(packed, offset))
                for part in range(parts):
                    code = reinterpret(codes_of(packed, offset, part), np.uint8)
                    # The columns of this part that are rounded.
                    column = block * length + part * PART
                    left, right = max(start - column, 0), min(stop - column, PART)
                    if left < right:
                        value = load(values, number * length + part * PART, PART)
                        code = rounded(value, code, scales, minimums, part * part_groups, left, right)
                    store(codes, part * PART, code)
                write(packed, offset, codes)

    return round_rows


def _nearest_code(codes: range | tuple[int, ...], zero: int) -> _Nearest:
    return _nearest_in_range(codes, zero) if isinstance(codes, range) else _nearest_in_table(codes, zero)


def _nearest_in_range(codes: range, zero: int) -> _Nearest:
    """Evenly spaced weights: the rounded quotient, or the code on the other side of the value where that one is nearer.
    Quotients and weights are both rounded, so the first guess may be off by one."""
    lowest, highest, middle = F32(codes[0]), F32(codes[-1]), F32(zero)

    @inline
    def clamped(code: Vec) -> Vec:
        return minimum(maximum(code, splat(lowest, PART)), splat(highest, PART))

    @inline
    def distance(value: Vec, weight: Vec) -> Vec:
        return absolute(convert(value, np.float64) - convert(weight, np.float64))

    @inline
    def nearest(value: Vec, scale: Vec, low: Vec) -> Vec:
        code = clamped(rint((value + low) / scale + middle))
        weight = (code - middle) * scale - low
        down = (value > weight) ^ (scale > F32(0))
        other = clamped(code + select(down, splat(F32(-1), PART), splat(F32(1), PART)))
        nearer = distance(value, (other - middle) * scale - low) < distance(value, weight)
        return select(nearer, other, code)

    return nearest


def _nearest_in_table(codes: tuple[int, ...], zero: int) -> _Nearest:
    """Weights that are not evenly spaced: every one is tried."""
    offsets = tuple(float(code - zero) for code in codes)
    count, least, most, middle = len(offsets), F32(min(offsets)), F32(max(offsets)), F32(zero)

    @inline
    def nearest(value: Vec, scale: Vec, low: Vec) -> Vec:
        # What lies beyond the weights is moved to the last of them: far away, all distances are rounded to the same.
        one_end, other_end = scale * least - low, scale * most - low
        inside = minimum(maximum(value, minimum(one_end, other_end)), maximum(one_end, other_end))
        wide = convert(inside, np.float64)
        found = splat(F32(offsets[0]), PART)
        best = absolute(wide - convert(scale * found - low, np.float64))
        for number in range(1, count):
            candidate = splat(F32(offsets[number]), PART)
            distance = absolute(wide - convert(scale * candidate - low, np.float64))
            nearer = distance < best
            best = select(nearer, distance, best)
            found = select(nearer, candidate, found)
        return found + middle

    return nearest
