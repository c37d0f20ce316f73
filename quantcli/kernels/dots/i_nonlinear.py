"""How products read IQ4_NL and IQ4_XS: four-bit codes that a table turns into int8.

Source of the layouts: `ggml-common.h` and `dequantize_row_iq4_*` in `ggml-quants.c`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import numpy as np

from quantcli.kernels.blocks.i_nonlinear import LEVELS
from quantcli.kernels.dots import PackedDot
from quantcli.kernels.dots.pieces import half_at, nibbles, offsets
from quantcli.kernels.jit import inline
from quantcli.kernels.shorthand import F32, U32
from quantcli.kernels.simd import byte_table, convert, load, load_scalar, splat

_level_of = byte_table(*LEVELS)
_NL_D, _NL_CODES = offsets("IQ4_NL", "d", "qs")
_XS_D, _XS_HIGH, _XS_LOW, _XS_CODES = offsets("IQ4_XS", "d", "scales_h", "scales_l", "qs")
_LOW_PLACES: Final = np.arange(0, 32, 4, dtype=np.uint32)
_HIGH_PLACES: Final = np.arange(0, 16, 2, dtype=np.uint32)


@inline
def _codes_nl(weights: Any, offset: Any, part: Any) -> Any:
    return _level_of(nibbles(weights, offset + _NL_CODES))


@inline
def _scales_nl(weights: Any, offset: Any) -> Any:
    return splat(half_at(weights, offset + _NL_D), 1)


@inline
def _codes_xs(weights: Any, offset: Any, part: Any) -> Any:
    return _level_of(nibbles(weights, offset + _XS_CODES + 16 * part))


@inline
def _scales_xs(weights: Any, offset: Any) -> Any:
    # Eight scales of six bits: the low four of each in a word, the high two in a half of one.
    low = splat(load_scalar(weights, offset + _XS_LOW, np.uint32), 8) >> load(_LOW_PLACES, 0, 8)
    high = splat(U32(load_scalar(weights, offset + _XS_HIGH, np.uint16)), 8) >> load(_HIGH_PLACES, 0, 8)
    levels = (low & U32(15)) | ((high & U32(3)) << U32(4))
    return (convert(levels, np.float32) - F32(32)) * half_at(weights, offset + _XS_D)


DOTS: Final = MappingProxyType(
    {
        "IQ4_NL": PackedDot(_codes_nl, _scales_nl, group=32, signed=True, scale_half=_NL_D),
        "IQ4_XS": PackedDot(_codes_xs, _scales_xs, group=32, signed=True),
    }
)
