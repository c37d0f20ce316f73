"""IQ2 and IQ3: groups of weights as a scale, signs, and a codebook point for the magnitudes.

Super-blocks are divided into sub-blocks with a scale each. `LANES` sub-blocks at a time are quantized, one per lane. One
kernel splits them into signs and magnitudes. Another rounds the magnitudes with a series of trial scales. Points off the
codebook are replaced by their best neighbour in it. The trial with the best fit wins, with the least-squares scale for its
points. Finally a super-block's scales are quantized relative to the largest, one super-block per lane.

Source: `quantize_row_iq2_*_impl` and `quantize_row_iq3_*_impl` in `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from quantcli.core.block_types import SUPER_BLOCK as K
from quantcli.core.block_types import TYPES
from quantcli.kernels.blocks.codebooks import LATTICES
from quantcli.kernels.blocks.lattice_packing import PACK
from quantcli.kernels.blocks.lattice_search import Lookup, addresses, lookup_tables, nearest
from quantcli.kernels.blocks.super_blocks import (
    batch_spread,
    fill,
    gather_batch,
    group_count,
    spread_out,
    store_half,
    transpose_group,
)
from quantcli.kernels.half import float_to_half
from quantcli.kernels.jit import inline, inline_once, kernel
from quantcli.kernels.rounding.scale_search import TINY, nearest_int, positive_search
from quantcli.kernels.shorthand import F32, I32, Bytes, Scratch, Vec
from quantcli.kernels.simd import (
    LANES,
    address,
    advance,
    convert,
    load,
    local,
    maximum,
    minimum,
    select,
    splat,
    sqrt,
    store,
)

_BATCH: Final = LANES * K

STRETCH: Final = 8 * LANES
"""Super-blocks that are prepared and then searched: their 12 bytes a weight stay in the second-level cache."""

OFF_GRID, ALL_IF_ONE, ALL = range(3)
"""Which points are rounded again with the scale found: those off the codebook, all if any one is off it, or all."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """The parameters that distinguish the quantizers of this module.

    A sub-block is `length` weights. The `2 * reach + 1` trial scales map the largest magnitude (where `fitted`, that of an
    unconstrained fit) to values `step` apart around that of the highest level. With `even_signs` eight signs take seven
    bits. Sub-blocks below `tiny` are zero. `again` is OFF_GRID, ALL_IF_ONE or ALL. `spread` is the factor of the mean
    square in the error weights. `gain` is the factor of the super-block's scale, which its authors tuned empirically.
    """

    length: int
    reach: int
    step: float
    fitted: bool
    even_signs: bool
    tiny: float
    again: int
    spread: float
    gain: float


SCHEMES: Final = {
    "IQ2_XXS": Scheme(32, 6, 0.1, True, True, float(TINY), ALL, 1.0, 1.0),
    "IQ2_XS": Scheme(16, 9, 0.1, False, True, float(TINY), OFF_GRID, 1.0, 1.0),
    "IQ2_S": Scheme(16, 9, 0.1, False, False, 1e-8, OFF_GRID, 2.0, 0.9875),
    "IQ3_XXS": Scheme(32, 15, 0.2, False, True, 1e-8, OFF_GRID, 2.0, 1.0125),
    # Only zero is below the smallest float.
    "IQ3_S": Scheme(32, 9, 0.2, False, False, 1e-45, ALL_IF_ONE, 2.0, 1.033),
}


class Prepared(NamedTuple):
    """Super-blocks prepared for the search, in groups of `LANES` sub-blocks, one sub-block in each lane.

    weight, root, magnitude   float32 per element; `root` is the square root of `weight`
    signs                     int32 per octet
    largest, scale            float32 per sub-block: its largest magnitude, 0 where the sub-block is to be zero, and its
                              scale before any trial
    """

    weight: Scratch
    root: Scratch
    magnitude: Scratch
    signs: Scratch
    largest: Scratch
    scale: Scratch


class Workspace(NamedTuple):
    """The scratch arrays of the trials for one group of sub-blocks.

    scales            the trial scales
    rounded, placed   int32, codes of the points of each trial before and after the codebook search

    The slot after the last trial holds the final result.
    """

    scales: Scratch
    rounded: Scratch
    placed: Scratch


@inline_once
def addresses_of(prepared: Prepared) -> Prepared:
    """The same arrays as base addresses."""
    return Prepared(
        address(prepared.weight, np.float32), address(prepared.root, np.float32), address(prepared.magnitude, np.float32),
        address(prepared.signs, np.int32), address(prepared.largest, np.float32), address(prepared.scale, np.float32),
    )  # fmt: skip


@inline
def _group(prepared: Prepared, group: int, length: int) -> Prepared:
    """The addresses of one group."""
    elements, sub_blocks = group * LANES * length, group * LANES
    return Prepared(
        advance(prepared.weight, elements), advance(prepared.root, elements), advance(prepared.magnitude, elements),
        advance(prepared.signs, elements // 8), advance(prepared.largest, sub_blocks), advance(prepared.scale, sub_blocks),
    )  # fmt: skip


@inline
def _set_error_weights(
    x: Scratch, base: int, length: int, importance: Scratch, variance: Vec, weighted: bool, to: Prepared
) -> None:
    """Error weights: importance * sqrt(variance + x * x), or x * x without an importance matrix."""
    for element in range(length):
        value = load(x, base + element * LANES, LANES)
        weight = value * value
        if weighted:
            weight = load(importance, base + element * LANES, LANES) * sqrt(variance + weight)
        store(to.weight, element * LANES, weight)
        store(to.root, element * LANES, sqrt(weight))


@inline
def _split_signs(x: Scratch, base: int, octet: int, even: bool, to: Prepared) -> None:
    """Split eight elements into magnitudes and sign bits.

    With `even` the parity of minus signs must be even, so that seven signs determine the eighth. Where it is odd, the
    element of least cost flips its sign, and its magnitude is negative from here on. Only seven signs are kept.
    """
    zero, one = splat(I32(0), LANES), splat(I32(1), LANES)
    signs, odd, cheapest = zero, zero, zero
    least = splat(F32(np.inf), LANES)
    for element in range(8):
        place = (octet * 8 + element) * LANES
        value = load(x, base + place, LANES)
        negative = ~(value >= splat(F32(0), LANES))
        signs = signs | select(negative, splat(I32(1 << element), LANES), zero)
        odd = odd ^ select(negative, one, zero)
        store(to.magnitude, place, select(negative, value * F32(-1), value))
        cost = load(to.weight, place, LANES) * value * value
        cheapest = select(cost < least, splat(I32(element), LANES), cheapest)
        least = minimum(cost, least)
    if even:
        flips = odd != zero
        signs = select(flips, signs ^ (one << cheapest), signs) & I32(127)
        for element in range(8):
            place = (octet * 8 + element) * LANES
            value = load(to.magnitude, place, LANES)
            flipped = flips & (cheapest == splat(I32(element), LANES))
            store(to.magnitude, place, select(flipped, value * F32(-1), value))
    store(to.signs, octet * LANES, signs)


@inline
def _largest(magnitude: Scratch, length: int) -> Vec:
    largest = load(magnitude, 0, LANES)
    for element in range(1, length):
        largest = maximum(largest, load(magnitude, element * LANES, LANES))
    return largest


@inline
def _round(group: Prepared, space: Workspace, trial: int, points: int, bits: int, inverse: Vec) -> None:
    """Round for a trial, ignoring the codebook. Levels have the values 1, 3, 5, ..."""
    dimensions, top = (8, 2) if bits == 2 else (4, 7)
    for point in range(points):
        code = splat(I32(0), LANES)
        for dimension in range(dimensions):
            value = load(group.magnitude, (point * dimensions + dimension) * LANES, LANES)
            level = nearest_int(F32(0.5) * (inverse * value - F32(1)))
            level = maximum(splat(I32(0), LANES), minimum(splat(I32(top), LANES), level))
            code = code | (level << I32(bits * dimension))
        store(space.rounded, (trial * points + point) * LANES, code)


@inline
def _place(
    group: Prepared, space: Workspace, tables: Lookup, trial: int, points: int, point: int, lane: int, bits: int
) -> None:
    """Replace one rounded point of a trial by the best codebook point."""
    at = (trial * points + point) * LANES + lane
    spaced = space.scales[trial * LANES + lane] * load(tables.levels, 0, LANES)
    first = point * (8 if bits == 2 else 4) * LANES + lane
    space.placed[at] = nearest(group.magnitude, group.root, first, bits, spaced, tables, space.rounded[at])


@inline
def _fit(group: Prepared, space: Workspace, trial: int, points: int, bits: int) -> tuple[Vec, Vec]:
    """A trial's least-squares sums of w * x * q and w * q * q, where q is the value of a level."""
    dimensions = 8 if bits == 2 else 4
    sum_qx = splat(F32(0), LANES)
    sum_q2 = splat(F32(0), LANES)
    for point in range(points):
        code = load(space.placed, (trial * points + point) * LANES, LANES)
        for dimension in range(dimensions):
            place = (point * dimensions + dimension) * LANES
            level = (code >> I32(bits * dimension)) & I32((1 << bits) - 1)
            q = convert(level + level + I32(1), np.float32)
            weight = load(group.weight, place, LANES)
            sum_qx = sum_qx + weight * load(group.magnitude, place, LANES) * q
            sum_q2 = sum_q2 + weight * q * q
    return sum_qx, sum_q2


@inline
def _take_trials(space: Workspace, last: int, points: int, chosen: Vec, again: int, redo: Scratch) -> None:
    """Copy each lane's points of its best trial to the result, or zeros if none fits. Sets the bit masks of those to round
    again."""
    store(redo, 0, chosen)
    for lane in range(LANES):
        trial, wanted = redo[lane], 0
        for point in range(points):
            at = (trial * points + point) * LANES + lane
            code = 0
            if trial >= 0:
                code = space.placed[at]
                wanted |= (code != space.rounded[at]) << point
            space.placed[(last * points + point) * LANES + lane] = code
        if again == ALL or (again == ALL_IF_ONE and (wanted != 0 or trial < 0)):
            wanted = (1 << points) - 1
        redo[lane] = wanted


@inline
def _clear(
    group: Prepared, space: Workspace, last: int, points: int, octets: int, empty: Vec, negative: Vec, flip: int
) -> None:
    """Zero the final codes and signs in the lanes of `empty`; flip all signs in those of `negative`."""
    nothing = splat(I32(0), LANES)
    for point in range(points):
        at = (last * points + point) * LANES
        store(space.placed, at, select(empty, nothing, load(space.placed, at, LANES)))
    for octet in range(octets):
        signs = load(group.signs, octet * LANES, LANES)
        signs = select(negative, signs ^ splat(I32(flip), LANES), signs)
        store(group.signs, octet * LANES, select(empty, nothing, signs))


def _preparation(name: str) -> Any:
    """The kernel that prepares `blocks` super-blocks from number `begin` on: x float32 (rows, n), importance float32 (n,)
    or of size 0."""
    scheme = SCHEMES[name]
    length, factor, tiny, fitted, even = scheme.length, scheme.spread, scheme.tiny, scheme.fitted, scheme.even_signs
    levels, per_block, octets = len(LATTICES[name].values), K // length, length // 8
    sub_blocks, group_size, starts = LANES * per_block, LANES * length, np.arange(LANES) * length

    @kernel
    def prepare(x: Scratch, importance: Scratch, begin: int, blocks: int, prepared: Prepared) -> None:
        source, given, weighted = address(x, np.float32), address(importance, np.float32), importance.size > 0
        batch, batch_importance = local(_BATCH, np.float32), local(_BATCH, np.float32)
        x_t, importance_t = local(_BATCH, np.float32), local(_BATCH, np.float32)
        spread, codes, zero = local(sub_blocks, np.float32), local(group_size, np.int32), splat(F32(0), LANES)
        to = addresses_of(prepared)
        for first in range(0, blocks, LANES):
            gather_batch(source, x.size, begin + first, begin + blocks, batch)
            batch_spread(batch, factor, per_block, spread)
            if weighted:
                gather_batch(given, importance.size, begin + first, begin + blocks, batch_importance)
            for part in range(group_count(min(LANES, blocks - first), per_block)):
                base, group = part * LANES * length, _group(to, first * per_block // LANES + part, length)
                transpose_group(batch, part, starts, length, x_t)
                if weighted:
                    transpose_group(batch_importance, part, starts, length, importance_t)
                _set_error_weights(x_t, base, length, importance_t, load(spread, part * LANES, LANES), weighted, group)
                for octet in range(octets):
                    _split_signs(x_t, base, octet, even, group)
                largest = _largest(group.magnitude, length)
                scale, empty = largest / F32(2 * levels - 1), largest < F32(tiny)
                if fitted:
                    scale = positive_search(group.magnitude, group.weight, length, levels + 1, codes)
                    largest = scale * F32(levels)
                    empty = empty | (largest <= zero)
                store(group.largest, 0, select(empty, zero, largest))
                store(group.scale, 0, scale)

    return prepare


def _searcher(name: str) -> Any:
    """The search of a type: for the scales of a group of sub-blocks, their signs and their points."""
    scheme, bits = SCHEMES[name], LATTICES[name].bits
    length, reach, step, again = scheme.length, scheme.reach, scheme.step, scheme.again
    points, octets, topmost = length // LATTICES[name].dimensions, length // 8, 5 if bits == 2 else 15
    flip = 127 if scheme.even_signs else 255

    @inline_once
    def search(group: Prepared, space: Workspace, tables: Lookup) -> Vec:
        zero, last = splat(F32(0), LANES), 2 * reach + 1
        largest, scale = load(group.largest, 0, LANES), load(group.scale, 0, LANES)
        best, chosen, redo = zero, splat(I32(-1), LANES), local(LANES, np.int32)
        store(redo, 0, chosen)
        # The last turn rounds points of the best trial again. A call of its own would compile the codebook search twice.
        for trial in range(last + 1):
            inverse = splat(F32(topmost) + F32(trial - reach) * F32(step), LANES) / largest
            trial_scale = splat(F32(1), LANES) / inverse
            if trial == last:
                _take_trials(space, last, points, chosen, again, redo)
                store(redo, 0, select(scale > zero, load(redo, 0, LANES), splat(I32(0), LANES)))
                inverse, trial_scale = splat(F32(1), LANES) / scale, scale
            store(space.scales, trial * LANES, trial_scale)
            _round(group, space, trial, points, bits, inverse)
            for lane in range(LANES):
                for point in range(points):
                    if redo[lane] >> point & 1:
                        _place(group, space, tables, trial, points, point, lane, bits)
            sum_qx, sum_q2 = _fit(group, space, trial, points, bits)
            better = (sum_q2 > zero) & (load(redo, 0, LANES) != splat(I32(0), LANES))
            if trial < last:
                better = better & (sum_qx * sum_qx > best * sum_q2)
            scale = select(better, sum_qx / sum_q2, scale)
            best = select(better, scale * sum_qx, best)
            chosen = select(better, splat(I32(trial), LANES), chosen)
        empty, negative = largest == zero, scale < zero
        _clear(group, space, last, points, octets, empty, negative, flip)
        return select(empty, zero, select(negative, scale * F32(-1), scale))

    return search


@inline
def _block_scales(scales: Scratch, per_block: int, gain: float, d_bits: Scratch, levels: Scratch) -> Vec:
    """Quantize the sub-blocks' scales of `LANES` super-blocks, transposed, to four bits, with values 1, 3 ... 31.

    Writes the levels, int32, transposed, and the super-blocks' d, uint16 float16 bits. Returns their largest scales.
    """
    zero = splat(F32(0), LANES)
    largest = zero
    for sub in range(per_block):
        largest = maximum(largest, load(scales, sub * LANES, LANES))
    d = largest / F32(31)
    inverse = splat(F32(1), LANES) / d
    store(d_bits, 0, float_to_half(d * F32(gain)))
    for sub in range(per_block):
        level = nearest_int(F32(0.5) * (inverse * load(scales, sub * LANES, LANES) - F32(1)))
        level = maximum(splat(I32(0), LANES), minimum(splat(I32(15), LANES), level))
        store(levels, sub * LANES, select(largest == zero, splat(I32(0), LANES), level))
    return largest


@inline
def _in_order(
    group: Prepared, space: Workspace, last: int, tables: Lookup, part: int, points: int, octets: int,
    indices: Scratch, signs: Scratch,
) -> None:  # fmt: skip
    """From a group's transposed codes and signs to codebook indices and signs in sub-block order."""
    for lane in range(LANES):
        sub = part * LANES + lane
        for point in range(points):
            indices[sub * points + point] = tables.indices[space.placed[(last * points + point) * LANES + lane]]
        for octet in range(octets):
            signs[sub * octets + octet] = group.signs[octet * LANES + lane]


def _search(name: str, pack: Any) -> Any:
    """The kernel that quantizes prepared super-blocks and packs them: the tables, and out uint8 of as many super-blocks."""
    scheme, block_bytes, search = SCHEMES[name], TYPES[name].block_bytes, _searcher(name)
    length, trials, even, gain = scheme.length, 2 * scheme.reach + 2, scheme.even_signs, scheme.gain
    points, octets, per_block = length // LATTICES[name].dimensions, length // 8, K // length
    slots, sub_blocks, trial_scales = trials * points * LANES, LANES * per_block, trials * LANES
    all_points, all_octets = sub_blocks * points, sub_blocks * octets

    @kernel
    def search_rows(prepared: Prepared, tables: Lookup, out: Bytes) -> None:
        packed, near, source = address(out, np.uint8), addresses(tables), addresses_of(prepared)
        scales, scales_t = local(sub_blocks, np.float32), local(sub_blocks, np.float32)
        indices, signs, levels = local(all_points, np.int32), local(all_octets, np.int32), local(sub_blocks, np.int32)
        d_bits, largest = local(LANES, np.uint16), local(LANES, np.float32)
        space = Workspace(local(trial_scales, np.float32), local(slots, np.int32), local(slots, np.int32))
        fill(scales_t, sub_blocks, F32(0))
        count = out.size // block_bytes
        for first in range(0, count, LANES):
            blocks = min(LANES, count - first)
            for part in range(group_count(blocks, per_block)):
                group = _group(source, first * per_block // LANES + part, length)
                store(scales, part * LANES, search(group, space, near))
                _in_order(group, space, trials - 1, near, part, points, octets, indices, signs)
            spread_out(scales, blocks, per_block, scales_t)
            store(largest, 0, _block_scales(scales_t, per_block, gain, d_bits, levels))
            for block in range(blocks):
                at = (first + block) * block_bytes
                these = advance(indices, block * per_block * points)
                those = advance(signs, block * per_block * octets)
                if even and largest[block] == F32(0):
                    fill(these, per_block * points, I32(0))
                    fill(those, per_block * octets, I32(0))
                store_half(packed, at, d_bits[block])
                pack(levels, block, these, those, packed, at)

    return search_rows


def _quantizer(name: str, pack: Any) -> Callable[[Scratch, Scratch, Bytes], None]:
    """The `quantize_weighted` of a type: x float32 (rows, n), importance float32 (n,) or of size 0, out uint8.

    Preparation and search are two kernels, because two processes then compile them at the same time.
    """
    prepare, search = _preparation(name), _search(name, pack)
    length, block_bytes = SCHEMES[name].length, TYPES[name].block_bytes

    def quantize_weighted(x: Scratch, importance: Scratch, out: Bytes) -> None:
        count, tables, packed = x.size // K, lookup_tables(name), out.reshape(-1)
        prepared = _room(min(count, STRETCH), length)
        for begin in range(0, count, STRETCH):
            stop = min(begin + STRETCH, count)
            prepare(x, importance, begin, stop - begin, prepared)
            search(prepared, tables, packed[begin * block_bytes : stop * block_bytes])

    return quantize_weighted


def _room(blocks: int, length: int) -> Prepared:
    weights = -(-blocks // LANES) * _BATCH
    weight, root, magnitude = (np.empty(weights, np.float32) for _ in range(3))
    largest, scale = (np.empty(weights // length, np.float32) for _ in range(2))
    return Prepared(weight, root, magnitude, np.empty(weights // 8, np.int32), largest, scale)


def _plain(quantize_weighted: Callable[[Scratch, Scratch, Bytes], None]) -> Callable[[Scratch, Bytes], None]:
    def quantize(x: Scratch, out: Bytes) -> None:
        quantize_weighted(x, np.empty(0, np.float32), out)

    return quantize


QUANTIZE_WEIGHTED: Final = {name: _quantizer(name, pack) for name, pack in PACK.items()}
"""The `quantize_weighted` of each type."""

QUANTIZE: Final = {name: _plain(QUANTIZE_WEIGHTED[name]) for name in ("IQ3_XXS", "IQ3_S")}
"""The `quantize` of the types that are usable without an importance matrix."""
