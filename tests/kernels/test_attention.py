"""Attention and what surrounds it against plain NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantcli.core.block_types import TYPES
from quantcli.kernels.activation_functions import activation
from quantcli.kernels.attention.cache_types import STORAGES
from quantcli.kernels.attention.one_query import attention_kernels
from quantcli.kernels.elementwise import add, layer_norm, rms_norm, rotate
from quantcli.kernels.rows import dequantize, quantize

RANDOM = np.random.default_rng(5)


NOTHING = np.empty(0, np.float32)


def oracle(q, keys, values, position, scale, softcap=0, window=0, chunk=0, ahead=0, slopes=NOTHING, sinks=NOTHING):
    """softmax(scale * q . k) . v, a row and a head at a time."""
    out = np.zeros((*q.shape[:2], values.shape[2]))
    share = q.shape[1] // keys.shape[0]
    for row in range(len(q)):
        own = position + row
        last = min(own + ahead, position + len(q) - 1) + 1
        first = max(0, own + 1 - window) if window else 0
        if chunk:
            first = own // chunk * chunk
        for head in range(q.shape[1]):
            k, v = keys[head // share, first:last], values[head // share, first:last]
            scores = scale * (k.astype(np.float64) @ q[row, head].astype(np.float64))
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            if len(slopes):
                scores -= slopes[head] * np.abs(own - np.arange(first, last))
            sink = [sinks[head]] if len(sinks) else []
            weights = np.exp(np.append(scores, sink) - scores.max())
            out[row, head] = (weights / weights.sum())[: len(scores)] @ v
    return out


def as_cached(x, kind):
    """Heads as a cache of a type gives them back."""
    if kind in ("f32", "f16"):
        return x if kind == "f32" else x.astype(np.float16).astype(np.float32)
    size = x.shape[2]
    wide = np.pad(x, ((0, 0), (0, 0), (0, -size % 32)))
    packed = quantize(np.ascontiguousarray(wide.reshape(-1, wide.shape[2])), TYPES[kind.upper()])
    return dequantize(packed, TYPES[kind.upper()]).reshape(wide.shape)[:, :, :size]


def attended(kind, rows, position, key_size, value_size, heads=6, kv_heads=2, shared=False, **options):
    """What the kernels make of random heads, and what the oracle does. `shared`: values are the first numbers of keys."""
    kernels, past = attention_kernels(kind), position + rows
    plain_keys, plain_values = (
        RANDOM.normal(size=(past, kv_heads, size)).astype(np.float32) for size in (key_size, value_size)
    )
    storage = STORAGES[kind]
    keys, values = (
        np.zeros((kv_heads, 50, storage.elements(size)), storage.dtype) for size in (key_size, value_size)
    )
    # In two steps, so that storing continues where it stopped.
    for start, stop in ((0, position), (position, past)):
        if stop > start:
            kernels.store(np.ascontiguousarray(plain_keys[start:stop]), keys, start)
            kernels.store(np.ascontiguousarray(plain_values[start:stop]), values, start)
    assert not keys[:, past:].any()
    plain_keys, plain_values = (as_cached(part, kind) for part in (plain_keys, plain_values))
    restored = storage.restore(np.ascontiguousarray(keys[:, :past]))
    np.testing.assert_array_equal(restored[:, :, :key_size], np.moveaxis(plain_keys, 1, 0))
    assert not restored[:, :, key_size:].any()
    if shared:
        values, plain_values = keys, np.ascontiguousarray(plain_keys[:, :, :value_size])
    q = RANDOM.normal(size=(rows, heads, key_size)).astype(np.float32)
    out = np.empty((rows, heads, value_size), np.float32)
    given = {"softcap": 0, "window": 0, "chunk": 0, "ahead": 0, "slopes": NOTHING, "sinks": NOTHING, **options}
    kernels.attend(
        q, keys, values, position, np.float32(0.3), np.float32(given["softcap"]), given["window"], given["chunk"],
        given["ahead"], given["slopes"], given["sinks"], out,
    )  # fmt: skip
    k, v = (np.moveaxis(part, 1, 0) for part in (plain_keys, plain_values))
    return out, oracle(q, k, v, position, 0.3, **options)


@pytest.mark.parametrize("kind", STORAGES)
@pytest.mark.parametrize(
    ("rows", "position", "size", "options"),
    [
        (1, 0, 8, {}), (1, 40, 64, {}), (5, 17, 20, {}), (3, 30, 64, {"softcap": 5}), (4, 30, 16, {"window": 7}),
        (9, 0, 100, {"window": 3}), (11, 3, 16, {"chunk": 5}), (1, 20, 16, {"chunk": 5}),
        (7, 13, 12, {"slopes": RANDOM.random(6).astype(np.float32)}), (9, 0, 16, {"ahead": 9}),
        (9, 0, 64, {"window": 4, "ahead": 3, "slopes": RANDOM.random(6).astype(np.float32)}),
        (7, 9, 16, {"sinks": RANDOM.normal(size=6).astype(np.float32)}),
        (1, 15, 16, {"sinks": RANDOM.normal(size=6).astype(np.float32), "window": 4}),
    ],
)  # fmt: skip
def test_attention_is_a_softmax_over_the_past(kind, rows, position, size, options):
    out, expected = attended(kind, rows, position, size, size, **options)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("key_size", "value_size", "shared"), [(24, 10, False), (10, 24, False), (20, 12, True), (24, 16, True)]
)
@pytest.mark.parametrize("kind", STORAGES)
def test_values_may_be_of_another_size_or_a_part_of_the_keys(kind, key_size, value_size, shared):
    out, expected = attended(kind, 3, 12, key_size, value_size, shared=shared)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)


def test_scores_far_apart_and_huge_do_not_overflow():
    kernels = attention_kernels("f32")
    keys = np.zeros((1, 4, 8), np.float32)
    keys[0, :, 0] = [1e4, -1e4, 0, 1e4]
    values = np.arange(32, dtype=np.float32).reshape(1, 4, 8)
    q = np.zeros((1, 1, 8), np.float32)
    q[..., 0] = 1e3
    out = np.empty_like(q)
    kernels.attend(q, keys, values, 3, np.float32(1), np.float32(0), 0, 0, 0, NOTHING, NOTHING, out)
    np.testing.assert_allclose(out[0, 0], (values[0, 0] + values[0, 3]) / 2, rtol=1e-6)


def test_a_cache_of_another_type_is_refused():
    with pytest.raises(ValueError, match="no attention over a cache of type 'q3'"):
        attention_kernels("q3")


@pytest.mark.parametrize("adjacent", [True, False])
@pytest.mark.parametrize("rows", [1, 4])
def test_rotation_turns_pairs_and_leaves_the_rest(adjacent, rows):
    x = RANDOM.normal(size=(rows, 3, 12)).astype(np.float32)
    angles = RANDOM.normal(size=(rows, 4))
    got = x.copy()
    rotate(got, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), adjacent)
    pairs = [(2 * i, 2 * i + 1) if adjacent else (i, i + 4) for i in range(4)]
    expected = x.astype(np.complex128)
    for i, (first, second) in enumerate(pairs):
        turned = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angles[:, i])[:, None]
        expected[..., first], expected[..., second] = turned.real, turned.imag
    np.testing.assert_allclose(got, expected.real, atol=1e-6)
    np.testing.assert_array_equal(got[..., 8:], x[..., 8:])


SHAPES = [(1, 5), (1, 64), (3, 172), (4, 31), (150, 120)]


@pytest.mark.parametrize("shape", SHAPES)
def test_norms_and_sums(shape):
    x, y = (RANDOM.normal(size=shape).astype(np.float32) * 4 for _ in range(2))
    weight, bias = RANDOM.normal(size=(2, shape[1])).astype(np.float32)
    out = np.empty_like(x)
    rms_norm(x, weight, np.float32(1e-5), out)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(out, wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * weight, rtol=2e-6, atol=1e-7)
    layer_norm(x, weight, bias, np.float32(1e-5), out)
    centred = wide - wide.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * weight + bias
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-6)
    total = x.copy()
    add(total, y)
    np.testing.assert_array_equal(total, x + y)


def logistic(x):
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    "silu": lambda x: x * logistic(x),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_quick": lambda x: x * logistic(1.702 * x),
    "gelu_erf": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_alone_and_as_gates(name, shape):
    function, kernels = ACTIVATIONS[name], activation(name)
    x, up = (RANDOM.normal(size=shape).astype(np.float32) * 4 for _ in range(2))
    x[0, 0], x[0, -1] = -200, 60
    with np.errstate(over="ignore"):
        expected = function(x.astype(np.float64))
    alone = x.copy()
    kernels.apply(alone)
    np.testing.assert_allclose(alone, expected, rtol=5e-6, atol=2e-6)
    gated = x.copy()
    kernels.gate(gated, 0, up, 0, gated)
    np.testing.assert_allclose(gated, expected * up, rtol=5e-6, atol=2e-5)
    both, out = np.concatenate([x, up], axis=1), np.empty_like(x)
    kernels.gate(both, 0, both, shape[1], out)
    np.testing.assert_array_equal(out, gated)


def test_a_gate_that_is_bounded():
    gate, up = np.array([[-9, 0.5, 9, 100]], np.float32), np.array([[-20, 0.25, 5, 20]], np.float32)
    bounded = np.minimum(gate, 7)
    expected = bounded * logistic(1.702 * bounded) * (np.clip(up, -7, 7) + 1)
    activation("clamped_swiglu").gate(gate, 0, up, 0, gate)
    np.testing.assert_allclose(gate, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="two inputs, gate and up"):
        activation("clamped_swiglu").apply(gate)
    with pytest.raises(ValueError, match="no activation is called 'mish'"):
        activation("mish")
