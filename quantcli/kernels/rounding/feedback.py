"""Rounding with error feedback (GPTQ) onto the grids of block types, with the scales chosen in the loop.

The loss of a row with errors e = w - q is e H e^T, where H is the second moment of the inputs. H = (I + U) D (I + U)^T with
U strictly upper triangular and D diagonal. So it is the sum over the columns k of

    D[k] (target[k] - q[k])^2        target[k] = w[k] + sum over j < k of e[j] U[j, k]

so each column is rounded to its target, and a candidate scale of a group is scored by rounding the group under it. This is
LDLQ (QuIP, arXiv:2307.13304, section 3), which gives what GPTQ does (arXiv:2210.17323), without an inverse. Columns keep
their order, which the blocks fix.

The scales of a block start from a search on its targets (`scale_fit`). Then, group by group, quantized scales and minimums
near the best ones are tried. A block is rounded under several super-block scales, and the least loss wins.

Every sum has a fixed order, and products are added by FMA, which rounds once on every machine. So the bytes depend neither
on the machine nor on the number of threads. Each lane has a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantcli.core.block_types import BlockType
from quantcli.kernels.blocks import codec
from quantcli.kernels.blocks.reader import MAX_GROUPS, CodeWriter, PackedReader
from quantcli.kernels.blocks.scale_fields import ScaleFields
from quantcli.kernels.half import float_to_half, half_to_float
from quantcli.kernels.jit import inline, inline_once, kernel
from quantcli.kernels.products.outer_sums import MULTIPLE, add_products
from quantcli.kernels.rounding.candidate_scales import TRIED, CandidateScales, candidate_scales
from quantcli.kernels.rounding.coordinate_descent import descend
from quantcli.kernels.rounding.lattice_feedback import lattice_rounder
from quantcli.kernels.rounding.lattice_schemes import SCHEMES
from quantcli.kernels.rounding.levels import Levels, levels_of
from quantcli.kernels.rounding.moment_factor import MomentFactor
from quantcli.kernels.rounding.scale_fit import scale_fit
from quantcli.kernels.rounding.stretch import STRETCH, Effort, feed, keep
from quantcli.kernels.shorthand import F32, Bytes, Floats
from quantcli.kernels.simd import (
    LANES,
    absolute,
    address,
    advance,
    grid_operations,
    load,
    local,
    maximum,
    select,
    splat,
    store,
)

_PLACES: Final = STRETCH * LANES
_TRIED_PLACES: Final = TRIED * STRETCH * LANES
_TRIED_LANES: Final = TRIED * LANES
_MINIMUMS: Final = MAX_GROUPS * LANES
_D: Final = 2 * _MINIMUMS
_DMIN: Final = _D + LANES
_SCALE_PLACES: Final = _DMIN + LANES
_SCALES: Final = _SCALE_PLACES // LANES
"""Where the scales of a block are: those of its groups, their minimums from `_MINIMUMS` on, and d and dmin."""

_INFINITY: Final = F32(np.inf)
_LEAST: Final = F32(np.finfo(np.float32).tiny)

_several, _single = grid_operations(TRIED, 1, LANES), grid_operations(1, 1, LANES)


_FEW_LEVELS: Final = 8


def _factors(count: int, levels: Levels) -> NDArray[np.float32]:
    """Factors of a super-block scale. With few levels they reach further, because the best scale clips more."""
    reach = 0.14 if len(levels.values) <= _FEW_LEVELS else 0.06
    return np.linspace(1 - reach, 1 + reach, count).astype(np.float32) if count > 1 else np.ones(1, np.float32)


def has_feedback(kind: BlockType) -> bool:
    """Whether `quantize_with_feedback` supports a type: all that are quantized, but not those that are only stored."""
    if kind.name in SCHEMES:
        return True
    functions = None if kind.family is None else codec(kind)
    return functions is not None and functions.writer is not None and functions.scales is not None


def quantize_with_feedback(
    x: NDArray[np.float32], kind: BlockType, factor: MomentFactor, effort: Effort, out: NDArray[np.uint8]
) -> None:
    """Quantize rows with error feedback, into blocks.

    x       float32 (rows, n)
    factor  the factors of the second moment of the inputs, n x n; n is a multiple of `MULTIPLE`
    out     uint8 (rows, bytes_per_row), C-contiguous

    The call is serial and releases the GIL in its kernels. The result does not depend on how rows are chunked.

    Raises:
        ValueError: for a type that is only stored, or that is not quantized.
    """
    is_lattice = kind.name in SCHEMES
    round_stretch = (lattice_rounder if is_lattice else stretch_rounder)(kind, effort)
    rows, n = x.shape
    padded = -rows % MULTIPLE + rows
    weights = np.zeros((n, padded), np.float32)
    weights[:, :rows] = x.T
    targets = weights.copy()
    data = np.zeros((padded, out.shape[1]), np.uint8)
    errors = np.empty((n, padded), np.float32)
    near = np.zeros((STRETCH, STRETCH), np.float32)
    for first in range(0, n, STRETCH):
        width = min(STRETCH, n - first)
        near[:width, :width] = factor.upper[first : first + width, first : first + width].T
        round_stretch(targets, weights, near, factor.diagonal, first, data, errors)
        after = first + width
        if after < n:
            add_products(factor.upper, first, after, errors[first:after], targets[after:])
    for _ in range(0 if is_lattice else effort.sweeps):
        descend(weights, errors, factor.moment, kind, data)
    out[...] = data[:rows]


def _simulation(levels: Levels, group: int, count: int) -> Callable[..., None]:
    """The `inline` function that rounds a group of columns under `count` candidates at once.

    at                the group's first column in the stretch
    scales, minimums  of the candidates: candidate c at c * LANES
    errors            receives w - q of column at + k under candidate c at (k * count + c) * LANES
    codes             receives the levels, where there is one candidate
    losses            receives the losses
    """
    grid = _several if count == TRIED else _single
    zeros, write, add_outer, nearest, single = grid.zeros, grid.write, grid.add_outer, levels.nearest, count == 1

    @inline
    def simulate(
        targets: Any, weights: Any, near: Any, weight_of: Any, at: Any, scales: Any, minimums: Any, errors: Any,
        codes: Any, losses: Any,
    ) -> None:  # fmt: skip
        sums, inverses = local(_TRIED_LANES, np.float32), local(_TRIED_LANES, np.float32)
        for c in range(count):
            scale = load(scales, c * LANES, LANES)
            usable = absolute(scale) > _LEAST  # else the inverse is infinite
            inverse = select(usable, splat(F32(1), LANES) / scale, splat(F32(0), LANES))
            store(inverses, c * LANES, inverse)
            store(losses, c * LANES, splat(F32(0), LANES))
        for k in range(group):
            total = zeros()
            for i in range(k):
                total = add_outer(total, errors, i * count * LANES, near, (at + k) * STRETCH + at + i, 0)
            write(total, sums, 0, 0)
            base, weight = load(targets, (at + k) * LANES, LANES), load(weights, (at + k) * LANES, LANES)
            for c in range(count):
                target = base + load(sums, c * LANES, LANES)
                scale, low = load(scales, c * LANES, LANES), load(minimums, c * LANES, LANES)
                level = nearest((target + low) * load(inverses, c * LANES, LANES))
                rounded = level * scale - low
                off = target - rounded
                store(losses, c * LANES, load(losses, c * LANES, LANES) + off * off * weight_of[at + k])
                store(errors, (k * count + c) * LANES, weight - rounded)
                if single:
                    store(codes, k * LANES, level)

    return simulate


def _choice(levels: Levels, group: int, candidates: CandidateScales) -> Callable[..., Any]:
    """The `inline_once` function that chooses the scales of a group and rounds it under them. It returns the loss.

    at, place      the group's first column in the stretch; that in the block, times LANES
    fitted         the float fits of scales and minimums: those of group g are used
    errors, codes  of the stretch and of the block: receive those of the group
    scales         receives the quantized scale and minimum of group g
    """
    several, single = _simulation(levels, group, TRIED), _simulation(levels, group, 1)
    start, candidate, batches, half = candidates.start, candidates.candidate, candidates.batches, TRIED // 2

    @inline_once
    def choose(
        targets: Any, weights: Any, near: Any, weight_of: Any, at: Any, place: Any, fitted: Any, d: Any, dmin: Any,
        errors: Any, codes: Any, scales: Any, g: Any, scratch: Any,
    ) -> Any:  # fmt: skip
        tried_scales, tried_minimums, losses, tried_errors = scratch
        fit, low = load(fitted, g * LANES, LANES), load(fitted, _MINIMUMS + g * LANES, LANES)
        first_scale, first_minimum = start(fit, low, d, dmin)
        best, chosen_scale, chosen_minimum = splat(_INFINITY, LANES), first_scale, first_minimum
        for batch in range(batches):
            t = batch - half
            for c in range(TRIED):
                _, scale, _, offset = candidate(first_scale, first_minimum, t, c - half, d, dmin)
                store(tried_scales, c * LANES, scale)
                store(tried_minimums, c * LANES, offset)
            several(targets, weights, near, weight_of, at, tried_scales, tried_minimums, tried_errors, codes, losses)
            for c in range(TRIED):
                index, _, index_minimum, _ = candidate(first_scale, first_minimum, t, c - half, d, dmin)
                better = load(losses, c * LANES, LANES) < best
                best = select(better, load(losses, c * LANES, LANES), best)
                chosen_scale = select(better, index, chosen_scale)
                chosen_minimum = select(better, index_minimum, chosen_minimum)
        store(scales, g * LANES, chosen_scale)
        store(scales, _MINIMUMS + g * LANES, chosen_minimum)
        _, scale, _, offset = candidate(chosen_scale, chosen_minimum, 0, 0, d, dmin)
        store(tried_scales, 0, scale)
        store(tried_minimums, 0, offset)
        single(
            targets, weights, near, weight_of, at, tried_scales, tried_minimums,
            advance(errors, at * LANES), advance(codes, place), losses,
        )  # fmt: skip
        return load(losses, 0, LANES)

    return choose


def _super_scales(fields: ScaleFields, groups: int, candidates: CandidateScales) -> Callable[..., Any]:
    """The `inline_once` function (scales, minimums) -> (d, dmin), not yet rounded to float16: what the largest scale and
    minimum of a block need."""
    signed = fields.scales[0] < 0
    extent = F32(fields.scales[0] if signed else fields.scales[-1])
    extent_of_minimums = F32(fields.minimums[-1]) if fields.minimums else F32(1)
    scaled = candidates.scaled

    @inline_once
    def super_scales(scales: Any, minimums: Any) -> Any:
        largest = extreme = highest = splat(F32(0), LANES)
        for g in range(groups):
            found = load(scales, g * LANES, LANES)
            larger = absolute(found) > largest
            largest, extreme = select(larger, absolute(found), largest), select(larger, found, extreme)
            highest = maximum(highest, load(minimums, g * LANES, LANES))
        if not scaled:
            return splat(F32(1), LANES), splat(F32(0), LANES)
        return (extreme if signed else largest) / extent, highest / extent_of_minimums

    return super_scales


def _packing(writer: CodeWriter, fields: ScaleFields, zero: int, kind: BlockType, floating: bool) -> Callable[..., None]:
    """The `inline_once` function that packs a block of each of `LANES` rows, which are `stride` bytes apart."""
    write, store_fields, length = writer.store, fields.store, kind.block_length
    groups = length // fields.group

    @inline_once
    def pack(codes: Any, scales: Any, packed: Any, offset: Any, stride: Any) -> None:
        row_codes = np.empty(length, np.uint8)
        row_scales, row_minimums = np.ones(MAX_GROUPS, np.int32), np.ones(MAX_GROUPS, np.int32)
        for lane in range(LANES):
            at = offset + lane * stride
            for k in range(length):
                row_codes[k] = np.uint8(np.int32(codes[k * LANES + lane]) + zero)
            if floating:
                store_fields(packed, at, scales[lane], scales[_MINIMUMS + lane], row_scales, row_minimums)
            else:
                for g in range(groups):
                    row_scales[g] = np.int32(scales[g * LANES + lane])
                    row_minimums[g] = np.int32(scales[_MINIMUMS + g * LANES + lane])
                store_fields(packed, at, scales[_D + lane], scales[_DMIN + lane], row_scales, row_minimums)
            write(packed, at, row_codes)

    return pack


@cache
def stretch_rounder(kind: BlockType, effort: Effort) -> Callable[..., None]:
    """The serial kernel `round(targets, weights, near, weight_of, first, data, errors)` that rounds a stretch of columns.

    targets    float32 (n, rows), transposed: weights plus what the errors of earlier columns contribute
    weights    float32 (n, rows)
    near       float32 (STRETCH, STRETCH): U of these columns, transposed: row k has what reaches column k
    weight_of  float32 (n,): D
    first      the stretch's first column; it has `STRETCH` columns or what is left of n
    data       uint8 (rows, bytes_per_row): the blocks of the stretch are written
    errors     float32 (n, rows): receives w - q

    The number of rows is a multiple of `LANES`. All arrays are C-contiguous. It checks no arguments and releases the GIL.

    Raises:
        ValueError: for a type that is only stored, or whose codes do not stand for single weights.
    """
    functions = codec(kind)
    reader, writer, fields = functions.reader, functions.writer, functions.scales
    if writer is None or fields is None or not isinstance(reader, PackedReader):
        raise ValueError(f"{kind.name} has no codes of single weights to round with error feedback")
    round_stretch: Callable[..., None] = _rounder(levels_of(reader, writer), writer, fields, kind, effort)
    return round_stretch


@inline
def _allocate() -> Any:
    """Stack memory: the targets, weights and current targets of a stretch; errors and codes, new and kept; scales of a fit,
    new and kept; what `choose` needs."""
    stretch = local(_PLACES, np.float32), local(_PLACES, np.float32), local(_PLACES, np.float32)
    errors = local(_PLACES, np.float32), local(_PLACES, np.float32)
    codes = local(_PLACES, np.float32), local(_PLACES, np.float32)
    scales = local(_SCALE_PLACES, np.float32), local(_SCALE_PLACES, np.float32), local(_SCALE_PLACES, np.float32)
    tried = local(_TRIED_LANES, np.float32), local(_TRIED_LANES, np.float32), local(_TRIED_LANES, np.float32)
    return stretch, errors, codes, scales, (*tried, local(_TRIED_PLACES, np.float32))


def _block_rounder(levels: Levels, fields: ScaleFields, length: int, effort: Effort, candidates: CandidateScales) -> Any:
    """The `inline_once` function that rounds the block which begins at column `block` of a stretch, with what `_allocate`
    gives as its `memory`. Its first pass only fits the scales of all groups."""
    group, groups, passes = fields.group, length // fields.group, effort.scales if candidates.scaled else 1
    factors, fit = _factors(passes, levels), scale_fit(levels, group, affine=bool(fields.minimums))
    choose, super_scales = _choice(levels, group, candidates), _super_scales(fields, groups, candidates)

    @inline_once
    def round_block(block: Any, near: Any, weight_of: Any, memory: Any) -> None:
        (target, own, trial), (new_error, error), (new_codes, codes), (fitted, new, kept), scratch = memory
        best = splat(_INFINITY, LANES)
        d = dmin = largest = highest = splat(F32(0), LANES)
        for number in range(-1, passes):
            loss = splat(F32(0), LANES)
            for k in range(block, block + length):
                store(trial, k * LANES, load(target, k * LANES, LANES))
            if number >= 0:
                d = half_to_float(float_to_half(largest * factors[number]))
                dmin = half_to_float(float_to_half(highest * factors[number]))
            for g in range(groups):
                at = block + g * group
                fit(trial, weight_of, at, fitted, advance(fitted, _MINIMUMS), g * LANES)
                if number >= 0:
                    loss = loss + choose(
                        trial, own, near, weight_of, at, g * group * LANES, fitted, d, dmin, new_error, new_codes, new, g,
                        scratch,
                    )  # fmt: skip
                    feed(trial, new_error, near, at, at + group, at + group, block + length)
            if number < 0:
                largest, highest = super_scales(fitted, advance(fitted, _MINIMUMS))
            else:
                better = loss < best
                best = select(better, loss, best)
                store(new, _D, d)
                store(new, _DMIN, dmin)
                keep(better, new, kept, 0, _SCALES)
                keep(better, new_codes, codes, 0, length)
                keep(better, new_error, error, block, block + length)

    return round_block


def _rounder(levels: Levels, writer: CodeWriter, fields: ScaleFields, kind: BlockType, effort: Effort) -> Any:
    length, block_bytes, candidates = kind.block_length, kind.block_bytes, candidate_scales(fields, levels)
    round_block = _block_rounder(levels, fields, length, effort, candidates)
    pack = _packing(writer, fields, levels.zero, kind, candidates.floating)

    @kernel
    def round_stretch(
        targets: Floats, weights: Floats, near: Floats, weight_of: Floats, first: int, data: Bytes, errors: Floats
    ) -> None:
        rows, width = targets.shape[1], min(STRETCH, len(weight_of) - first)
        all_targets, all_weights = address(targets, np.float32), address(weights, np.float32)
        all_errors, feedback = address(errors, np.float32), address(near, np.float32)
        weight, packed = advance(address(weight_of, np.float32), first), data.reshape(-1)
        memory = _allocate()
        (target, own, _), (_, error), (_, codes), (_, _, kept), _ = memory
        for row in range(0, rows, LANES):
            for k in range(width):
                store(target, k * LANES, load(all_targets, (first + k) * rows + row, LANES))
                store(own, k * LANES, load(all_weights, (first + k) * rows + row, LANES))
            for block in range(0, width, length):
                round_block(block, feedback, weight, memory)
                feed(target, error, feedback, block, block + length, block + length, width)
                offset = row * data.shape[1] + (first + block) // length * block_bytes
                pack(codes, kept, packed, offset, data.shape[1])
            for k in range(width):
                store(all_errors, (first + k) * rows + row, load(error, k * LANES, LANES))

    return round_stretch
