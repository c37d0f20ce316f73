"""The recurrence of state-space layers against plain NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from quantcli.kernels.selective_scan import scan

RANDOM = np.random.default_rng(8)


@pytest.mark.parametrize(("heads", "size", "groups", "alike"), [(12, 1, 1, False), (4, 5, 2, True), (3, 2, 3, True)])
def test_states_decay_and_take_up_what_comes(heads, size, groups, alike):
    tokens, states = 9, 7
    x, inputs, outputs, start = (
        RANDOM.normal(size=shape).astype(np.float32)
        for shape in ((tokens, heads, size), (tokens, groups, states), (tokens, groups, states), (heads, size, states))
    )
    steps = RANDOM.random((tokens, heads)).astype(np.float32)
    decay = -RANDOM.random((heads, 1 if alike else states)).astype(np.float32) * 3
    expected, state = np.empty((tokens, heads, size)), start.astype(np.float64)
    owner = np.arange(heads) * groups // heads
    for token in range(tokens):
        kept = np.exp(steps[token][:, None].astype(np.float64) * decay)[:, None, :]
        given = (steps[token][:, None] * x[token]).astype(np.float64)
        state = state * kept + given[:, :, None] * inputs[token, owner][:, None, :]
        expected[token] = (state * outputs[token, owner][:, None, :]).sum(2)
    out, kept_state = np.empty_like(x), start.copy()
    # In two steps, so that the state is seen to go on.
    for part in (slice(0, 4), slice(4, tokens)):
        scan(x[part], steps[part], decay, inputs[part], outputs[part], kept_state, out[part])
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(kept_state, state, rtol=2e-5, atol=2e-5)
