"""Round to nearest under fixed scales, for every type with scalar codes. GPTQ, which rounds with error feedback, calls it
column by column.

It is derived from a type's reader (weight = scale * (code - zero) - minimum) and its writer of codes. Candidate weights are
the float32 values of `dequantize`. Distances are compared in float64: different ones may round to the same float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType, block_type
from quantcli.kernels.blocks import codec
from quantcli.kernels.blocks.reader import MAX_GROUPS, PART, CodeWriter, PackedReader
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
"""An `inline` function (values, scales, minimums) -> nearest codes, all vectors of 32 float32."""

_PLACES: Final = np.arange(PART, dtype=np.int32)
_INFINITY: Final = F32(np.inf)


def round_codes(
    x: NDArray[np.float32], data: NDArray[np.uint8], kind: str | BlockType, start: int = 0, stop: int | None = None
) -> None:
    """Round weights to the nearest codes in place, under the scales and minimums already in `data`.

    x      float32 (rows, n)
    data   uint8 (rows, bytes_per_row), C-contiguous: blocks of `kind`; their scales and minimums are kept
    start  first column to round; it may lie within a block
    stop   end column, exclusive; None for n. The weights of all other columns are kept

    Distance is measured to the dequantized weight. Ties go to the even code, or for non-uniform types and Q1_0, to the code
    that llama.cpp's quantizer takes. A code is kept where its scale is zero or not finite, or the value is NaN: no code is
    nearer than another. The call is serial and releases the GIL. The result does not depend on how rows are chunked.

    All codes of a block with a rounded column are packed again. A negative zero of MXFP4 or NVFP4 then becomes a positive
    zero. A byte of TQ1_0 that no quantizer produces becomes the canonical one with the same codes.

    Raises:
        ValueError: for an unknown type or one whose codes do not stand for single weights, an array of another shape or
            dtype, blocks that cannot be written in place, or columns outside the row.
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
    """The serial kernel that rounds to nearest under fixed scales. It checks no arguments and releases the GIL.

    Raises:
        ValueError: for a type that is only stored, or whose codes do not stand for single weights.
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
        scales, minimums = np.zeros(MAX_GROUPS, np.float32), np.zeros(MAX_GROUPS, np.float32)
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
                    # The columns of this part to round.
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
    """Uniform quantization: the rounded quotient, or the code on the other side of the value if that one is nearer.
    Quotients and weights both have rounding errors, so the first guess may be off by one."""
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
    """Non-uniform quantization (a codebook of scalars): exhaustive search."""
    offsets = tuple(float(code - zero) for code in codes)
    count, least, most, middle = len(offsets), F32(min(offsets)), F32(max(offsets)), F32(zero)

    @inline
    def nearest(value: Vec, scale: Vec, low: Vec) -> Vec:
        # Values beyond the outermost weights are clamped to them: far away, all distances round to the same number.
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
