"""The transformer operations between matrix products (normalization, residual, RoPE), on float32 rows, one per token.

Every kernel works in place or into `out`, row by row. The many rows of a prompt are distributed over threads. For one
generated token this does not pay.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from quantcli.kernels.jit import inline
from quantcli.kernels.simd import LANES, convert, fma, load, maximum, minimum, reinterpret, rint, splat, store, sum_lanes
from quantcli.kernels.threads import parallel_kernel
from quantcli.kernels.threads.loops import parallel_for

SMALL: Final = 1 << 14
"""Below this count of numbers, one thread finishes before other threads wake up."""

_LOG2_E = np.float32(1.44269504)
# ln 2 in two parts, so that n * ln 2 is more precise than float32 (Cody-Waite range reduction).
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# The Cephes library's polynomial for (exp(r) - 1 - r) / r**2 on |r| <= ln(2) / 2, highest power first.
_EXP_5, _EXP_4, _EXP_3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_EXP_2, _EXP_1, _EXP_0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
# Between these bounds exp is a normal number and 2**n a finite float32.
_EXP_MIN, _EXP_MAX = np.float32(-87.3), np.float32(88.3)
_ONE, _ZERO = np.float32(1), np.float32(0)
_EXPONENT_BIAS = np.int32(127)
_MANTISSA_BITS = np.int32(23)


@inline
def exponential(x: Any) -> Any:
    """exp of each lane of a float32 vector, within 2 ulp; clamped to normal numbers."""
    x = minimum(maximum(x, splat(_EXP_MIN, LANES)), splat(_EXP_MAX, LANES))
    n = rint(x * _LOG2_E)
    r = fma(n, splat(-_LN2_HIGH, LANES), x)
    r = fma(n, splat(-_LN2_LOW, LANES), r)
    p = fma(splat(_EXP_5, LANES), r, splat(_EXP_4, LANES))
    p = fma(p, r, splat(_EXP_3, LANES))
    p = fma(p, r, splat(_EXP_2, LANES))
    p = fma(p, r, splat(_EXP_1, LANES))
    p = fma(p, r, splat(_EXP_0, LANES))
    p = fma(p, r * r, r) + _ONE
    power = reinterpret((convert(n, np.int32) + _EXPONENT_BIAS) << _MANTISSA_BITS, np.float32)
    return p * power


@inline
def _rms_norm_row(row: Any, x: Any, weight: Any, epsilon: Any, out: Any) -> None:
    n = x.shape[1]
    first, whole = row * n, n - n % LANES
    squares = splat(_ZERO, LANES)
    for i in range(0, whole, LANES):
        v = load(x, first + i, LANES)
        squares = fma(v, v, squares)
    total = sum_lanes(squares)
    for i in range(whole, n):
        total += x[row, i] * x[row, i]
    scale = np.float32(1 / np.sqrt(total / np.float32(n) + epsilon))
    for i in range(0, whole, LANES):
        store(out, first + i, load(x, first + i, LANES) * scale * load(weight, i, LANES))
    for i in range(whole, n):
        out[row, i] = x[row, i] * scale * weight[i]


@parallel_kernel
def rms_norm(pool: Any, x: Any, weight: Any, epsilon: Any, out: Any) -> None:
    """RMSNorm of each row: out = x / sqrt(mean(x**2) + epsilon) * weight.

    x, out float32 (rows, n), which may be the same array; weight float32 (n,); epsilon float32.
    """
    parallel_for(pool if x.size > SMALL else 0, x.shape[0], _rms_norm_row, (x, weight, epsilon, out))


@inline
def _layer_norm_row(row: Any, x: Any, weight: Any, bias: Any, epsilon: Any, out: Any) -> None:
    n = x.shape[1]
    total = _ZERO
    for i in range(n):
        total += x[row, i]
    mean = total / np.float32(n)
    squares = _ZERO
    for i in range(n):
        squares += (x[row, i] - mean) * (x[row, i] - mean)
    scale = np.float32(1 / np.sqrt(squares / np.float32(n) + epsilon))
    for i in range(n):
        out[row, i] = (x[row, i] - mean) * scale * weight[i] + bias[i]


@parallel_kernel
def layer_norm(pool: Any, x: Any, weight: Any, bias: Any, epsilon: Any, out: Any) -> None:
    """LayerNorm of each row: out = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias.

    x, out float32 (rows, n), which may be the same array; weight, bias float32 (n,); epsilon float32.
    """
    parallel_for(pool if x.size > SMALL else 0, x.shape[0], _layer_norm_row, (x, weight, bias, epsilon, out))


@inline
def _add_row(row: Any, x: Any, y: Any) -> None:
    n = x.shape[1]
    first, whole = row * n, n - n % LANES
    for i in range(0, whole, LANES):
        store(x, first + i, load(x, first + i, LANES) + load(y, first + i, LANES))
    for i in range(whole, n):
        x[row, i] += y[row, i]


@parallel_kernel
def add(pool: Any, x: Any, y: Any) -> None:
    """x += y, the residual connection. Both float32 (rows, n)."""
    parallel_for(pool if x.size > SMALL else 0, x.shape[0], _add_row, (x, y))


@inline
def _rotate_row(row: Any, x: Any, cosines: Any, sines: Any, adjacent: Any) -> None:
    pairs = cosines.shape[1]
    for head in range(x.shape[1]):
        for i in range(pairs):
            first, second = (2 * i, 2 * i + 1) if adjacent else (i, i + pairs)
            a, b = x[row, head, first], x[row, head, second]
            c, s = cosines[row, i], sines[row, i]
            x[row, head, first] = a * c - b * s
            x[row, head, second] = a * s + b * c


@parallel_kernel
def rotate(pool: Any, x: Any, cosines: Any, sines: Any, adjacent: Any) -> None:
    """Rotary position embedding (RoPE), in place: rotate pairs of numbers of each head by the angles of the row's position.

    x float32 (rows, heads, head_size); cosines, sines float32 (rows, pairs) with 2 * pairs <= head_size. The rest of the
    head is unchanged. Pairs are (2i, 2i + 1) where `adjacent`, else (i, i + pairs) as in NeoX.
    """
    parallel_for(pool if x.size > SMALL else 0, x.shape[0], _rotate_row, (x, cosines, sines, adjacent))
