"""IQ1: groups of eight weights as a scale, a ternary codebook point (-1, 0, 1), and a shift of +-delta for all eight.

With three levels the optimal rounding of a sub-block can be found exhaustively: it splits the sorted weights into those
that become -1, 0 and 1. Every split is tried, with every choice of shifts, using prefix sums. Then points off the codebook
are replaced by their best neighbours in it. As in `lattice_magnitude`, `LANES` sub-blocks at a time are in the lanes.

Source: `quantize_row_iq1_s_impl` and `quantize_row_iq1_m_impl` in `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from quantcli.core.block_types import SUPER_BLOCK as K
from quantcli.core.block_types import TYPES
from quantcli.kernels.blocks.lattice_search import FARTHEST, Lookup, addresses, lookup_tables, nearest
from quantcli.kernels.blocks.packed_fields import offsets
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
from quantcli.kernels.rounding.scale_search import nearest_int
from quantcli.kernels.shorthand import F32, I32, Bytes, Scratch, Vec
from quantcli.kernels.simd import (
    LANES,
    absolute,
    address,
    advance,
    any_lane,
    convert,
    load,
    local,
    maximum,
    minimum,
    select,
    splat,
    sqrt,
    store,
    store_scalar,
)

QS_1S, QH_1S = offsets("IQ1_S", "qs", "qh")
QS_1M, QH_1M, SCALES_1M = offsets("IQ1_M", "qs", "qh", "scales")

SHIFT: Final = np.float32(0.125)
"""`IQ1S_DELTA`: the shift of a group of IQ1 above or below -1, 0 and 1, in units of its scale."""

BITS: Final = 2
"""Bits of a level in a code."""


class Batch(NamedTuple):
    """The transposed arrays of a batch.

    x, weight   float32 per element
    codes       int32 per octet: where an element is in -1, 0 and 1, in the codebook or not
    scale       float32 per sub-block
    minus       int32 per sub-block: a bit for each octet with a negative shift
    empty       int32 per sub-block: 1 where it is to be zero
    """

    x: Scratch
    weight: Scratch
    codes: Scratch
    scale: Scratch
    minus: Scratch
    empty: Scratch


class Sums(NamedTuple):
    """A group's ranks and prefix sums.

    rank        int32: the position of each element in ascending order
    x, weight   float32: for n = 0, 1, ... the sums of weight * x and of weight over the n smallest elements

    Where the halves of a sub-block have separate shifts, they have separate sums, those of the second half after those of
    the first. Elements of the other half count as 0.
    """

    rank: Scratch
    x: Scratch
    weight: Scratch


class Split(NamedTuple):
    """The best splits so far: their `score`, `scale`, and `choice`.

    `choice` is int32 and packs a byte each for the number of elements that become -1, that of those that become -1 or 0,
    and the mask of octets with a negative shift. It is -1 before anything fits.
    """

    score: Vec
    scale: Vec
    choice: Vec


@inline
def _rank(x: Scratch, base: int, length: int, sums: Sums) -> None:
    """The ranks of a stable sort: equal elements keep their order."""
    one, zero = splat(I32(1), LANES), splat(I32(0), LANES)
    for element in range(length):
        value = load(x, base + element * LANES, LANES)
        rank = zero
        for other in range(element):
            rank = rank + select(load(x, base + other * LANES, LANES) <= value, one, zero)
        for other in range(element + 1, length):
            rank = rank + select(load(x, base + other * LANES, LANES) < value, one, zero)
        store(sums.rank, element * LANES, rank)


@inline
def _accumulate(batch: Batch, base: int, length: int, halves: int, sums: Sums) -> None:
    """Fill in `sums` from its ranks."""
    stride = (length + 1) * LANES
    fill(sums.x, halves * stride, F32(0))
    fill(sums.weight, halves * stride, F32(0))
    for element in range(length):
        half = element * halves // length * stride
        for lane in range(LANES):
            place = element * LANES + lane
            at = half + (sums.rank[place] + 1) * LANES + lane
            sums.x[at] = batch.weight[base + place] * batch.x[base + place]
            sums.weight[at] = batch.weight[base + place]
    for half in range(halves):
        total_x = splat(F32(0), LANES)
        total_w = total_x
        for at in range(half * stride + LANES, (half + 1) * stride, LANES):
            total_x = total_x + load(sums.x, at, LANES)
            total_w = total_w + load(sums.weight, at, LANES)
            store(sums.x, at, total_x)
            store(sums.weight, at, total_w)


@inline
def _better(best: Split, sum_qx: Vec, sum_q2: Vec, choice: int) -> Split:
    """The better of `best` and a split with these sums of w * x * q and w * q * q."""
    better = (sum_q2 > splat(F32(0), LANES)) & (sum_qx * sum_qx > best.score * sum_q2)
    if not any_lane(better):
        return best
    scale = select(better, sum_qx / sum_q2, best.scale)
    score = select(better, scale * sum_qx, best.score)
    return Split(score, scale, select(better, splat(I32(choice), LANES), best.choice))


@inline
def _shifted_sums(low: Vec, middle: Vec, high: Vec, low_w: Vec, middle_w: Vec, high_w: Vec, shift: Any) -> tuple[Vec, Vec]:
    """The sums of w * x * q and w * q * q of a split, from those of w * x and w over its three parts."""
    a, b, c = F32(-1) + shift, shift, F32(1) + shift
    return low * a + middle * b + high * c, low_w * a * a + middle_w * b * b + high_w * c * c


@inline
def _split_whole(sums: Sums, best: Split) -> Split:
    """The best split of sub-blocks of 32 that have one shift (IQ1_S)."""
    all_x, all_w = load(sums.x, 32 * LANES, LANES), load(sums.weight, 32 * LANES, LANES)
    for first in range(33):
        low, low_w = load(sums.x, first * LANES, LANES), load(sums.weight, first * LANES, LANES)
        for second in range(first, 33):
            below, below_w = load(sums.x, second * LANES, LANES), load(sums.weight, second * LANES, LANES)
            choice = first << 16 | second << 8
            middle, high, middle_w, high_w = below - low, all_x - below, below_w - low_w, all_w - below_w
            sum_qx, sum_q2 = _shifted_sums(low, middle, high, low_w, middle_w, high_w, SHIFT)
            best = _better(best, sum_qx, sum_q2, choice)
            sum_qx, sum_q2 = _shifted_sums(low, middle, high, low_w, middle_w, high_w, -SHIFT)
            best = _better(best, sum_qx, sum_q2, choice | 15)
    return best


@inline
def _half_sums(sums: Sums, half: int, first: int, second: int, shift: Any) -> tuple[Vec, Vec]:
    """One half's contribution to the sums of w * x * q and w * q * q of a split. It starts from the total at the highest
    level and subtracts the differences of the lower parts."""
    at, low, high = half * 17 * LANES, F32(-1) + shift, F32(1) + shift
    all_x, all_w = load(sums.x, at + 16 * LANES, LANES), load(sums.weight, at + 16 * LANES, LANES)
    below = load(sums.x, at + first * LANES, LANES) + load(sums.x, at + second * LANES, LANES)
    first_w, second_w = load(sums.weight, at + first * LANES, LANES), load(sums.weight, at + second * LANES, LANES)
    squares = all_w * high * high + first_w * (low * low - shift * shift) + second_w * (shift * shift - high * high)
    return all_x * high - below, squares


@inline
def _split_halves(sums: Sums, best: Split) -> Split:
    """The best split of sub-blocks of 16 whose halves have a shift each (IQ1_M)."""
    for first in range(17):
        for second in range(first, 17):
            choice = first << 16 | second << 8
            up_x0, up_w0 = _half_sums(sums, 0, first, second, SHIFT)
            up_x1, up_w1 = _half_sums(sums, 1, first, second, SHIFT)
            down_x0, down_w0 = _half_sums(sums, 0, first, second, -SHIFT)
            down_x1, down_w1 = _half_sums(sums, 1, first, second, -SHIFT)
            best = _better(best, up_x0 + up_x1, up_w0 + up_w1, choice)
            best = _better(best, up_x0 + down_x1, up_w0 + down_w1, choice | 2)
            best = _better(best, down_x0 + up_x1, down_w0 + up_w1, choice | 1)
            best = _better(best, down_x0 + down_x1, down_w0 + down_w1, choice | 3)
    return best


@inline
def _value(code: Vec, minus: Vec, octet: int, element: int) -> Vec:
    """The value of an element's level: -1, 0 or 1 plus the shift, float32."""
    level = (code >> I32(BITS * element)) & I32(3)
    down = ((minus >> I32(octet)) & I32(1)) != splat(I32(0), LANES)
    return convert(level - I32(1), np.float32) + select(down, splat(-SHIFT, LANES), splat(SHIFT, LANES))


@inline
def _write_split(batch: Batch, group: int, octets: int, empty: Vec, split: Split, sums: Sums) -> None:
    """A group's codes, scales and shifts of a split. With a negative scale the points are negated: 1 for -1."""
    first, second = split.choice >> I32(16), (split.choice >> I32(8)) & I32(255)
    negative, minus = split.scale < splat(F32(0), LANES), split.choice & I32(255)
    zero, one = splat(I32(0), LANES), splat(I32(1), LANES)
    for octet in range(octets):
        code = zero
        for element in range(8):
            rank = load(sums.rank, (octet * 8 + element) * LANES, LANES)
            level = select(rank >= first, one, zero) + select(rank >= second, one, zero)
            code = code | (select(negative, I32(2) - level, level) << I32(BITS * element))
        store(batch.codes, (group * octets + octet) * LANES, code)
    store(batch.scale, group * LANES, select(negative, split.scale * F32(-1), split.scale))
    store(batch.minus, group * LANES, select(negative, minus ^ I32((1 << octets) - 1), minus))
    store(batch.empty, group * LANES, select(empty | (split.choice < zero), one, zero))


@inline
def _into_codebook(batch: Batch, group: int, octets: int, tables: Lookup, inexact: Scratch) -> None:
    """Replace the points off the codebook. `inexact` receives in which lanes there were any."""
    up = convert(load(LEVELS, 0, LANES), np.float32)
    base = group * octets * 8 * LANES
    for lane in range(LANES):
        inexact[lane] = 0
        minus, scale = batch.minus[group * LANES + lane], batch.scale[group * LANES + lane]
        for octet in range(octets):
            at = (group * octets + octet) * LANES + lane
            code = batch.codes[at]
            if tables.indices[code] < 0:
                inexact[lane] = 1
                spaced = scale * (up + (-SHIFT if minus >> octet & 1 else SHIFT))
                place = base + octet * 8 * LANES + lane
                batch.codes[at] = nearest(batch.x, batch.weight, place, BITS, spaced, tables, code)


@inline
def _refit(batch: Batch, group: int, octets: int) -> tuple[Vec, Vec]:
    """The sums of w * q * x and w * q * q over a group's sub-blocks."""
    sum_qx = splat(F32(0), LANES)
    sum_q2 = sum_qx
    minus = load(batch.minus, group * LANES, LANES)
    for octet in range(octets):
        code = load(batch.codes, (group * octets + octet) * LANES, LANES)
        for element in range(8):
            place = ((group * octets + octet) * 8 + element) * LANES
            q = _value(code, minus, octet, element)
            weighted = load(batch.weight, place, LANES) * q
            sum_qx = sum_qx + weighted * load(batch.x, place, LANES)
            sum_q2 = sum_q2 + weighted * q
    return sum_qx, sum_q2


@inline_once
def _settle(batch: Batch, group: int, octets: int, tables: Lookup) -> None:
    """From the codes of a group's best splits to points of the codebook, with the scales for them."""
    zero, nothing = splat(F32(0), LANES), splat(I32(0), LANES)
    inexact = local(LANES, np.int32)
    _into_codebook(batch, group, octets, tables, inexact)
    sum_qx, sum_q2 = _refit(batch, group, octets)
    again = (load(inexact, 0, LANES) != nothing) & (sum_qx > zero) & (sum_q2 > zero)
    empty = load(batch.empty, group * LANES, LANES) != nothing
    scale = select(again, sum_qx / sum_q2, load(batch.scale, group * LANES, LANES))
    store(batch.scale, group * LANES, select(empty, zero, scale))
    store(batch.minus, group * LANES, select(empty, nothing, load(batch.minus, group * LANES, LANES)))
    for octet in range(octets):
        at = (group * octets + octet) * LANES
        store(batch.codes, at, select(empty, nothing, load(batch.codes, at, LANES)))


@inline
def _error_weights(batch: Batch, base: int, length: int, importance: Scratch, variance: Vec) -> Vec:
    """Error weights: importance * sqrt(variance + x * x). Returns the largest |x|."""
    largest = splat(F32(0), LANES)
    for element in range(length):
        value = load(batch.x, base + element * LANES, LANES)
        largest = maximum(largest, absolute(value))
        weight = load(importance, base + element * LANES, LANES) * sqrt(variance + value * value)
        store(batch.weight, base + element * LANES, weight)
    return largest


@inline
def _block_scales(scales: Scratch, per_block: int, levels: Scratch) -> Vec:
    """Quantize the sub-blocks' scales of `LANES` super-blocks, transposed, to three bits. Levels have the values 1, 3 ...
    15. Writes the levels, int32, transposed, and returns the super-blocks' largest scales."""
    largest = splat(F32(0), LANES)
    for sub in range(per_block):
        largest = maximum(largest, load(scales, sub * LANES, LANES))
    inverse = splat(F32(1), LANES) / (largest / F32(15))
    for sub in range(per_block):
        level = nearest_int(F32(0.5) * (inverse * load(scales, sub * LANES, LANES) - F32(1)))
        store(levels, sub * LANES, maximum(splat(I32(0), LANES), minimum(splat(I32(7), LANES), level)))
    return largest


LEVELS: Final = np.resize(np.array([-1, 0, 1, 1], np.int32), LANES)


@inline
def _at(batch_sub: int, octet: int, octets: int) -> int:
    """Where a batch's transposed arrays hold an octet of a sub-block."""
    return (batch_sub // LANES * octets + octet) * LANES + batch_sub % LANES


# Each of these packs super-block `block` of a batch to `out[at:]`, given its largest scale and its sub-blocks' levels.


@inline
def _pack_iq1_s(batch: Batch, block: int, largest: Any, levels: Scratch, tables: Lookup, out: Bytes, at: int) -> None:
    store_half(out, at, float_to_half(largest / F32(15) * F32(1.125)))
    for sub in range(8):
        high = 0
        for octet in range(4):
            index = tables.indices[batch.codes[_at(block * 8 + sub, octet, 4)]]
            out[at + QS_1S + 4 * sub + octet] = index & 255
            high |= index >> 8 << 3 * octet
        if largest > F32(0):
            high |= (levels[sub * LANES + block] | batch.minus[block * 8 + sub] & 8) << 12
        store_scalar(out, at + QH_1S + 2 * sub, np.uint16(high))


@inline
def _best_unit(batch: Batch, block: int, largest: Any, levels: Scratch) -> Any:
    """The least-squares scale of a super-block of IQ1_M, given all its other fields."""
    sum_qx, sum_q2 = F32(0), F32(0)
    for element in range(K):
        sub, octet = block * 16 + element // 16, element // 8 % 2
        place = (sub // LANES * 16 + element % 16) * LANES + sub % LANES
        level = batch.codes[_at(sub, octet, 2)] >> (BITS * (element % 8)) & 3
        shift = -SHIFT if batch.minus[sub] >> octet & 1 else SHIFT
        q = (F32(level - 1) + shift) * F32(2 * levels[element // 16 * LANES + block] + 1)
        weighted = batch.weight[place] * q
        sum_qx += weighted * batch.x[place]
        sum_q2 += weighted * q
    return sum_qx / sum_q2 if sum_q2 > F32(0) else largest / F32(15)


@inline
def _pack_iq1_m(batch: Batch, block: int, largest: Any, levels: Scratch, tables: Lookup, out: Bytes, at: int) -> None:
    for sub in range(16):
        high = 0
        for octet in range(2):
            index = tables.indices[batch.codes[_at(block * 16 + sub, octet, 2)]]
            out[at + QS_1M + 2 * sub + octet] = index & 255
            high |= index >> 8 << 4 * octet
        if largest > F32(0):
            minus = batch.minus[block * 16 + sub]
            high |= (minus & 1) << 3 | (minus & 2) << 6
        out[at + QH_1M + sub] = high
    half = np.int64(0)
    if largest > F32(0):
        half = np.int64(float_to_half(_best_unit(batch, block, largest, levels) * F32(1.1125)))
    for quarter in range(4):
        word = (half >> 4 * quarter & 15) << 12
        for sub in range(4):
            if largest > F32(0):
                word |= levels[(4 * quarter + sub) * LANES + block] << 3 * sub
        store_scalar(out, at + SCALES_1M + 2 * quarter, np.uint16(word))


_BATCH: Final = LANES * K

STRETCH: Final = 8
"""Batches that are split and then settled: their arrays stay in the second-level cache."""


@inline_once
def _addresses(batch: Batch, number: int, sub_blocks: int) -> Batch:
    """The base addresses of batch `number`."""
    elements, subs = number * _BATCH, number * sub_blocks
    return Batch(
        advance(address(batch.x, np.float32), elements), advance(address(batch.weight, np.float32), elements),
        advance(address(batch.codes, np.int32), elements // 8), advance(address(batch.scale, np.float32), subs),
        advance(address(batch.minus, np.int32), subs), advance(address(batch.empty, np.int32), subs),
    )  # fmt: skip


def _splitter(length: int, halves: int, tiny: float, split: Any) -> Any:
    """The kernel that splits the sub-blocks of super-blocks `begin` to `end`: x float32 (rows, n), importance (n,)."""
    octets, per_block = length // 8, K // length
    sub_blocks, group_size, sums_size = LANES * per_block, LANES * length, halves * (length + 1) * LANES
    starts = np.arange(LANES) * length

    @kernel
    def split_rows(x: Scratch, importance: Scratch, begin: int, end: int, batches: Batch) -> None:
        source, given = address(x, np.float32), address(importance, np.float32)
        in_order, importance_in_order = local(_BATCH, np.float32), local(_BATCH, np.float32)
        importance_t, spread = local(_BATCH, np.float32), local(sub_blocks, np.float32)
        sums = Sums(local(group_size, np.int32), local(sums_size, np.float32), local(sums_size, np.float32))
        for first in range(begin, end, LANES):
            batch = _addresses(batches, (first - begin) // LANES, sub_blocks)
            gather_batch(source, x.size, first, end, in_order)
            gather_batch(given, importance.size, first, end, importance_in_order)
            batch_spread(in_order, 2.0, per_block, spread)
            for group in range(group_count(min(LANES, end - first), per_block)):
                base = group * LANES * length
                transpose_group(in_order, group, starts, length, batch.x)
                transpose_group(importance_in_order, group, starts, length, importance_t)
                empty = _error_weights(batch, base, length, importance_t, load(spread, group * LANES, LANES)) < F32(tiny)
                _rank(batch.x, base, length, sums)
                _accumulate(batch, base, length, halves, sums)
                none = Split(splat(F32(-FARTHEST), LANES), splat(F32(0), LANES), splat(I32(-1), LANES))
                _write_split(batch, group, octets, empty, split(sums, none), sums)

    return split_rows


def _packer(name: str, length: int, pack: Any) -> Any:
    """The kernel that moves the points of split batches into the codebook and packs them: the tables, and out uint8."""
    octets, per_block, block_bytes = length // 8, K // length, TYPES[name].block_bytes
    sub_blocks = LANES * per_block

    @kernel
    def pack_rows(batches: Batch, tables: Lookup, out: Bytes) -> None:
        packed, near, count = address(out, np.uint8), addresses(tables), out.size // block_bytes
        scales_t, levels, largest = local(sub_blocks, np.float32), local(sub_blocks, np.int32), local(LANES, np.float32)
        fill(scales_t, sub_blocks, F32(0))
        for first in range(0, count, LANES):
            blocks, batch = min(LANES, count - first), _addresses(batches, first // LANES, sub_blocks)
            for group in range(group_count(blocks, per_block)):
                _settle(batch, group, octets, near)
            spread_out(batch.scale, blocks, per_block, scales_t)
            store(largest, 0, _block_scales(scales_t, per_block, levels))
            for block in range(blocks):
                pack(batch, block, largest[block], levels, near, packed, (first + block) * block_bytes)

    return pack_rows


def _quantizer(name: str, length: int, halves: int, tiny: float, split: Any, pack: Any) -> Callable[..., None]:
    """The `quantize_weighted` of a type whose sub-blocks are `length` weights with a shift for each of `halves` parts, and
    zero below `tiny`. It is two kernels, because two processes then compile them at the same time."""
    split_rows, pack_rows = _splitter(length, halves, tiny, split), _packer(name, length, pack)
    block_bytes = TYPES[name].block_bytes

    def quantize_weighted(x: Scratch, importance: Scratch, out: Bytes) -> None:
        count, step, tables, packed = x.size // K, STRETCH * LANES, lookup_tables(name), out.reshape(-1)
        batches = _room(-(-min(count, step) // LANES), length)
        for begin in range(0, count, step):
            end = min(begin + step, count)
            split_rows(x, importance, begin, end, batches)
            pack_rows(batches, tables, packed[begin * block_bytes : end * block_bytes])

    return quantize_weighted


def _room(batches: int, length: int) -> Batch:
    """Arrays for so many batches."""
    weights = batches * _BATCH
    per_weight, per_octet, per_sub_block = weights, weights // 8, weights // length
    return Batch(
        np.empty(per_weight, np.float32), np.empty(per_weight, np.float32), np.empty(per_octet, np.int32),
        np.empty(per_sub_block, np.float32), np.empty(per_sub_block, np.int32), np.empty(per_sub_block, np.int32),
    )  # fmt: skip


QUANTIZE_WEIGHTED: Final = {
    "IQ1_S": _quantizer("IQ1_S", 32, 1, 1e-12, _split_whole, _pack_iq1_s),
    "IQ1_M": _quantizer("IQ1_M", 16, 2, 1e-7, _split_halves, _pack_iq1_m),
}
"""The `quantize_weighted` of each type."""
