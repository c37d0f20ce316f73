"""Attention and what surrounds it against plain NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from quantcli.kernels.attention import attention_kernels, padded_head_size
from quantcli.kernels.elementwise import add, rms_norm, rotate, silu_multiply

RANDOM = np.random.default_rng(5)


def oracle(q, keys, values, position, scale, softcap, window):
    """softmax(scale * q . k) . v, a row and a head at a time."""
    out = np.zeros(q.shape)
    share = q.shape[1] // keys.shape[0]
    for row in range(len(q)):
        last = position + row + 1
        first = max(0, last - window) if window else 0
        for head in range(q.shape[1]):
            k, v = keys[head // share, first:last], values[head // share, first:last]
            scores = scale * (k.astype(np.float64) @ q[row, head].astype(np.float64))
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights / weights.sum() @ v
    return out


@pytest.mark.parametrize("precision", [np.float32, np.uint16])
@pytest.mark.parametrize(
    ("rows", "position", "size", "softcap", "window"),
    [(1, 0, 8, 0, 0), (1, 40, 64, 0, 0), (5, 17, 20, 0, 0), (3, 30, 64, 5, 0), (4, 30, 16, 0, 7), (9, 0, 100, 0, 3)],
)
def test_attention_is_a_softmax_over_the_past(precision, rows, position, size, softcap, window):
    heads, kv_heads, context = 6, 2, 50
    kernels, padded = attention_kernels(np.dtype(precision)), padded_head_size(size)
    keys = np.zeros((kv_heads, context, padded), precision)
    values = np.zeros_like(keys)
    past = position + rows
    plain = RANDOM.normal(size=(2, past, kv_heads, size)).astype(np.float32)
    if precision is np.uint16:
        plain = plain.astype(np.float16).astype(np.float32)
    # In two steps, so that storing continues where it stopped.
    for start, stop in ((0, position), (position, past)):
        if stop > start:
            kernels.store(np.ascontiguousarray(plain[0, start:stop]), keys, start)
            kernels.store(np.ascontiguousarray(plain[1, start:stop]), values, start)
    assert not keys[:, past:].any()
    q = RANDOM.normal(size=(rows, heads, size)).astype(np.float32)
    out = np.empty_like(q)
    kernels.attend(q, keys, values, position, np.float32(0.3), np.float32(softcap), window, out)
    k, v = (np.moveaxis(part, 1, 0) for part in plain)
    np.testing.assert_allclose(out, oracle(q, k, v, position, 0.3, softcap, window), rtol=2e-5, atol=2e-5)


def test_scores_far_apart_and_huge_do_not_overflow():
    kernels = attention_kernels(np.dtype(np.float32))
    keys = np.zeros((1, 4, 8), np.float32)
    keys[0, :, 0] = [1e4, -1e4, 0, 1e4]
    values = np.arange(32, dtype=np.float32).reshape(1, 4, 8)
    q = np.zeros((1, 1, 8), np.float32)
    q[..., 0] = 1e3
    out = np.empty_like(q)
    kernels.attend(q, keys, values, 3, np.float32(1), np.float32(0), 0, out)
    np.testing.assert_allclose(out[0, 0], (values[0, 0] + values[0, 3]) / 2, rtol=1e-6)


def test_a_cache_of_another_precision_is_refused():
    with pytest.raises(ValueError, match="no attention over a cache of int8"):
        attention_kernels(np.dtype(np.int8))


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


@pytest.mark.parametrize("shape", [(1, 5), (1, 64), (3, 172), (4, 31)])
def test_norms_activations_and_sums(shape):
    x, y = (RANDOM.normal(size=shape).astype(np.float32) * 4 for _ in range(2))
    weight = RANDOM.normal(size=shape[1]).astype(np.float32)
    out = np.empty_like(x)
    rms_norm(x, weight, np.float32(1e-5), out)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(out, wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * weight, rtol=2e-6, atol=1e-7)
    gate = x.copy()
    gate[0, 0], gate[0, -1] = -200, 200
    expected = gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64))) * y
    silu_multiply(gate, y)
    np.testing.assert_allclose(gate, expected, rtol=2e-6, atol=1e-35)
    total = x.copy()
    add(total, y)
    np.testing.assert_array_equal(total, x + y)
