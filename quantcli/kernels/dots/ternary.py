"""How products read TQ1_0 and TQ2_0: digits 0, 1, 2 that stand for -1, 0, 1 times the block's scale.

Source of the layouts: `ggml-common.h` and `dequantize_row_tq*` in `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from quantcli.kernels.dots import PackedDot
from quantcli.kernels.dots.pieces import bits_from, half_at, offsets
from quantcli.kernels.jit import inline
from quantcli.kernels.shorthand import U8
from quantcli.kernels.simd import load, select, shuffle, splat

_PART: Final = 32
_POWERS: Final = 3 ** np.arange(5, dtype=np.uint8)
_QUAD_POWERS: Final = np.repeat(_POWERS[:4], 4)

_TQ1_LEVELS, _TQ1_REST, _TQ1_D = offsets("TQ1_0", "qs", "qh", "d")
_TQ2_LEVELS, _TQ2_D = offsets("TQ2_0", "qs", "d")
_join = shuffle(*range(32))
_four_times = shuffle(*(4 * (0, 1, 2, 3)))


@inline
def _digits(fractions: Any) -> Any:
    """The digits that multiplying by three carries out of bytes: 1 from 86 on, 2 from 171 on."""
    zero, one = splat(U8(0), _PART), splat(U8(1), _PART)
    return select(fractions >= U8(86), one, zero) + select(fractions >= U8(171), one, zero)


@inline
def _codes_tq1(weights: Any, offset: Any, part: Any) -> Any:
    # 32 bytes hold parts 0 to 4; 16 bytes five half parts from part 5 on, and four bytes the last half part.
    if part < 5:
        return _digits(load(weights, offset + _TQ1_LEVELS, _PART) * _POWERS[part])
    narrow = load(weights, offset + _TQ1_LEVELS + _PART, 16)
    digit = 2 * (part - 5)
    if part < 7:
        return _digits(_join(narrow * _POWERS[digit], narrow * _POWERS[digit + 1]))
    rest = load(weights, offset + _TQ1_REST, 4)
    return _digits(_join(narrow * _POWERS[4], _four_times(rest, rest) * load(_QUAD_POWERS, 0, 16)))


@inline
def _codes_tq2(weights: Any, offset: Any, part: Any) -> Any:
    return bits_from(load(weights, offset + _TQ2_LEVELS + part // 4 * _PART, _PART), part % 4 * 2, U8(3))


def _scale_at(place: int) -> Callable[..., Any]:
    @inline
    def scales(weights: Any, offset: Any) -> Any:
        return splat(half_at(weights, offset + place), 8)

    return scales


DOTS: Final = MappingProxyType(
    {
        "TQ1_0": PackedDot(_codes_tq1, _scale_at(_TQ1_D), group=32, zero=1),
        "TQ2_0": PackedDot(_codes_tq2, _scale_at(_TQ2_D), group=32, zero=1),
    }
)
