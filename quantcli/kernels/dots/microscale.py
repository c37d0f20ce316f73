"""How products read MXFP4 and NVFP4: four-bit floats, which a table turns into halves, counted from -16.

Source of the layouts: `ggml-common.h` and `dequantize_row_*fp4` in `ggml-quants.c`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import numpy as np

from quantcli.kernels.blocks.microscale import HALF_E4M3, LEVELS, power_scale
from quantcli.kernels.dots import PackedDot
from quantcli.kernels.dots.pieces import bits_from, nibbles, offsets
from quantcli.kernels.jit import inline
from quantcli.kernels.shorthand import U8
from quantcli.kernels.simd import byte_table, load, load_scalar, reinterpret, shuffle, splat

_ZERO: Final = 16
_level_of = byte_table(*(level + _ZERO for level in LEVELS))
_MX_SCALE, _MX_CODES = offsets("MXFP4", "e", "qs")
_NV_SCALES, _NV_CODES = offsets("NVFP4", "d", "qs")
# Eight bytes hold 16 weights: their lower halves, then their upper ones.
_by_sixteens = shuffle(*range(8), *range(16, 24), *range(8, 16), *range(24, 32))
_pair, _quad = shuffle(0, 1), shuffle(0, 1, 2, 3)


@inline
def _codes_mx(weights: Any, offset: Any, part: Any) -> Any:
    return reinterpret(_level_of(nibbles(weights, offset + _MX_CODES)), np.uint8)


@inline
def _scales_mx(weights: Any, offset: Any) -> Any:
    exponent = np.int32(load_scalar(weights, offset + _MX_SCALE, np.uint8))
    return splat(power_scale(exponent), 1)


@inline
def _codes_nv(weights: Any, offset: Any, part: Any) -> Any:
    pairs = load(weights, offset + _NV_CODES + 16 * part, 16)
    return reinterpret(_level_of(_by_sixteens(bits_from(pairs, 0, U8(15)), bits_from(pairs, 4, U8(15)))), np.uint8)


@inline
def _scale_nv(weights: Any, place: Any) -> Any:
    return splat(HALF_E4M3[load_scalar(weights, place, np.uint8)], 1)


@inline
def _scales_nv(weights: Any, offset: Any) -> Any:
    at = offset + _NV_SCALES
    first = _pair(_scale_nv(weights, at), _scale_nv(weights, at + 1))
    return _quad(first, _pair(_scale_nv(weights, at + 2), _scale_nv(weights, at + 3)))


DOTS: Final = MappingProxyType(
    {
        "MXFP4": PackedDot(_codes_mx, _scales_mx, group=32, zero=_ZERO),
        "NVFP4": PackedDot(_codes_nv, _scales_nv, group=16, zero=_ZERO),
    }
)
