"""Explicit SIMD for numba: fixed-width vectors and intrinsics, instead of relying on auto-vectorization.

A `Vector(element, lanes)` is one LLVM vector value. LLVM splits a vector that is wider than the machine's registers, so the
same kernel runs everywhere. Each lane computes exactly what scalar code would: IEEE operations in the order written, no
fast-math flags, no FMA contraction (except in `fma`, which rounds once by definition).

    x = load(array, index, LANES)           LANES consecutive elements, from any alignment
    store(array, index, x)
    address(array, np.uint8)  local(32, np.float32)   base address of an array; stack memory. Both replace an array argument
    advance(place, 8)  cache_line(place)    the address 8 elements after a base address; the next that begins a cache line
    splat(scalar, LANES)                    the scalar in every lane
    + - * /  < <= > >= == !=  & | ^ ~ << >>  of vectors of one type, or a vector and a scalar of its element type; -x
    select(mask, a, b)  any_lane(mask)  all_lanes(mask)
    absolute  rint  round_away  truncate  sqrt  floor  fma  minimum  maximum
    convert(x, np.int32)                    lane-wise C cast
    reinterpret(x, np.int32)                bit cast to other elements
    sum_lanes  max_lanes  min_lanes         horizontal reduction to a scalar; floats are summed pairwise
    mask_bits  bits_mask  first_lane        mask to integer and back; index of the first true lane
    transpose_tile                          transpose of a square tile
    dot_bytes / dot_pairs / dot_quads       integer multiply-add, by the machine's instruction if it has one
    HAS_BFLOAT_DOT                          whether the machine has an instruction for dot products of bfloat16
    narrow                                  two vectors of int32 to one of int16
    grid_operations                         outer products on register tiles, for GEMM

Integers passed as lane counts must be literals or module constants: they determine the type.

The quantizers put one block in each lane (see `blocks/`). `LANES` is the width of the machine's registers. Results do not
depend on it.
"""

from __future__ import annotations

from quantcli.kernels.simd import operators as operators
from quantcli.kernels.simd.bfloat_dot import HAS_BFLOAT_DOT
from quantcli.kernels.simd.integer_dot import (
    dot_bytes,
    dot_pairs,
    dot_quads,
    narrow,
)
from quantcli.kernels.simd.lanewise import (
    absolute,
    byte_table,
    convert,
    floor,
    fma,
    lookup,
    maximum,
    minimum,
    reinterpret,
    rint,
    rotate_right,
    round_away,
    select,
    shuffle,
    sqrt,
    staircase,
    truncate,
)
from quantcli.kernels.simd.memory import (
    CACHE_LINE,
    address,
    advance,
    cache_line,
    lane,
    load,
    load_scalar,
    local,
    prefetch,
    recast,
    splat,
    store,
    store_scalar,
    transpose_tile,
)
from quantcli.kernels.simd.outer_products import GridOperations, grid_operations
from quantcli.kernels.simd.reductions import (
    all_lanes,
    any_lane,
    bits_mask,
    first_lane,
    mask_bits,
    max_lanes,
    min_lanes,
    sum_lanes,
    sum_rows,
)
from quantcli.kernels.simd.vector import LANES, Vector, machine_features

__all__ = [
    "CACHE_LINE",
    "HAS_BFLOAT_DOT",
    "LANES",
    "GridOperations",
    "Vector",
    "absolute",
    "address",
    "advance",
    "all_lanes",
    "any_lane",
    "bits_mask",
    "byte_table",
    "cache_line",
    "convert",
    "dot_bytes",
    "dot_pairs",
    "dot_quads",
    "first_lane",
    "floor",
    "fma",
    "grid_operations",
    "lane",
    "load",
    "load_scalar",
    "local",
    "lookup",
    "machine_features",
    "mask_bits",
    "max_lanes",
    "maximum",
    "min_lanes",
    "minimum",
    "narrow",
    "prefetch",
    "recast",
    "reinterpret",
    "rint",
    "rotate_right",
    "round_away",
    "select",
    "shuffle",
    "splat",
    "sqrt",
    "staircase",
    "store",
    "store_scalar",
    "sum_lanes",
    "sum_rows",
    "transpose_tile",
    "truncate",
]
