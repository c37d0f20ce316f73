"""MLP activation functions on float32 rows, by their names in graph flags.

An activation is one `inline` function of vectors. `Activation.apply` applies it, `Activation.gate` also multiplies the
result by the up projection (GLU). A GLU that is not such a product is one joint function of gate and up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from quantcli.kernels.elementwise import SMALL, exponential
from quantcli.kernels.jit import inline
from quantcli.kernels.simd import LANES, lane, load, maximum, minimum, splat, store
from quantcli.kernels.threads import parallel_kernel
from quantcli.kernels.threads.loops import parallel_for

_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_TWICE_ROOT_2_PI, _CUBIC = np.float32(2 * 0.79788456080286535588), np.float32(0.044715)
_QUICK = np.float32(1.702)
_ROOT_HALF = np.float32(math.sqrt(0.5))
_LIMIT = np.float32(7)


@inline
def _logistic_product(x: Any, y: Any) -> Any:
    """x * logistic(y)."""
    return x / (exponential(splat(_ZERO, LANES) - y) + _ONE)


@inline
def _silu(x: Any) -> Any:
    return _logistic_product(x, x)


@inline
def _gelu(x: Any) -> Any:
    """0.5 x (1 + tanh(u)) is x logistic(2 u)."""
    return _logistic_product(x, (x + x * x * x * _CUBIC) * _TWICE_ROOT_2_PI)


@inline
def _gelu_quick(x: Any) -> Any:
    return _logistic_product(x, x * _QUICK)


@inline
def _gelu_erf(x: Any) -> Any:
    numbers = np.empty(LANES, np.float32)
    store(numbers, 0, x)
    for i in range(LANES):
        numbers[i] = _HALF * numbers[i] * (_ONE + np.float32(math.erf(numbers[i] * _ROOT_HALF)))
    return load(numbers, 0, LANES)


@inline
def _relu(x: Any) -> Any:
    return maximum(x, splat(_ZERO, LANES))


@inline
def _relu_squared(x: Any) -> Any:
    x = maximum(x, splat(_ZERO, LANES))
    return x * x


@inline
def _clamped_swiglu(gate: Any, up: Any) -> Any:
    """Clamped SwiGLU of GPT-OSS: the linear part is clamped on both sides and has 1 added, the gate is clamped above."""
    gate = minimum(gate, splat(_LIMIT, LANES))
    up = minimum(maximum(up, splat(-_LIMIT, LANES)), splat(_LIMIT, LANES))
    return _gelu_quick(gate) * (up + _ONE)


_SINGLE: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        "silu": _silu,
        "gelu": _gelu,
        "gelu_quick": _gelu_quick,
        "gelu_erf": _gelu_erf,
        "relu": _relu,
        "relu_squared": _relu_squared,
    }
)
_DOUBLE: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType({"clamped_swiglu": _clamped_swiglu})


@dataclass(frozen=True, slots=True)
class Activation:
    """The kernels of an activation f, compiled when first called.

    apply(x)                                     x = f(x), in place; x float32 (rows, n)
    gate(gates, first, ups, second, out)         out[:, i] = f(gates[:, first + i]) * ups[:, second + i]

    gates, ups and out are float32 with the same number of rows. out (rows, n) may be gates where `first` is 0. A joint
    function of gate and up has no `apply`: calling it raises ValueError.
    """

    apply: Callable[..., None]
    gate: Callable[..., None]


@cache
def activation(name: str) -> Activation:
    """The kernels of an activation.

    Raises:
        ValueError: for an unknown name.
    """
    if name in _SINGLE:
        return Activation(_apply_kernel(_SINGLE[name]), _gate_kernel(_times(_SINGLE[name])))
    if name in _DOUBLE:
        return Activation(_no_kernel, _gate_kernel(_DOUBLE[name]))
    raise ValueError(f"no activation is called {name!r}")


def _no_kernel(x: Any) -> None:
    raise ValueError("this activation takes two inputs, gate and up")


def _times(function: Callable[..., Any]) -> Callable[..., Any]:
    @inline
    def both(gate: Any, up: Any) -> Any:
        return function(gate) * up

    return both


def _apply_kernel(function: Callable[..., Any]) -> Callable[..., None]:
    @inline
    def apply_row(row: Any, x: Any) -> None:
        n = x.shape[1]
        at, whole = row * n, n - n % LANES
        for i in range(0, whole, LANES):
            store(x, at + i, function(load(x, at + i, LANES)))
        for i in range(whole, n):
            x[row, i] = lane(function(splat(x[row, i], LANES)), 0)

    @parallel_kernel
    def apply(pool: Any, x: Any) -> None:
        parallel_for(pool if x.size > SMALL else 0, x.shape[0], apply_row, (x,))

    return apply


def _gate_kernel(function: Callable[..., Any]) -> Callable[..., None]:
    @inline
    def gate_row(row: Any, gates: Any, first: Any, ups: Any, second: Any, out: Any) -> None:
        n = out.shape[1]
        whole = n - n % LANES
        first, second, at = row * gates.shape[1] + first, row * ups.shape[1] + second, row * n
        for i in range(0, whole, LANES):
            store(out, at + i, function(load(gates, first + i, LANES), load(ups, second + i, LANES)))
        for i in range(whole, n):
            one, other = load(gates, first + i, 1), load(ups, second + i, 1)
            out[row, i] = lane(function(splat(lane(one, 0), LANES), splat(lane(other, 0), LANES)), 0)

    @parallel_kernel
    def gate(pool: Any, gates: Any, first: Any, ups: Any, second: Any, out: Any) -> None:
        parallel_for(pool if out.size > SMALL else 0, out.shape[0], gate_row, (gates, first, ups, second, out))

    return gate
