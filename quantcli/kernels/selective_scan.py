"""The selective scan of state-space layers (Gu and Dao, "Mamba", 2023; Dao and Gu, "Transformers are SSMs", 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantcli.kernels.jit import inline
from quantcli.kernels.threads import parallel_kernel
from quantcli.kernels.threads.loops import parallel_for


@inline
def _scan_head(head: Any, x: Any, steps: Any, decay: Any, inputs: Any, outputs: Any, state: Any, out: Any) -> None:
    tokens, heads, size = x.shape
    states, groups = state.shape[2], inputs.shape[1]
    group = head // (heads // groups)
    keep = np.empty(states, np.float32)
    for token in range(tokens):
        step = steps[token, head]
        if decay.shape[1] == 1:
            keep[:] = np.exp(step * decay[head, 0])
        else:
            for i in range(states):
                keep[i] = np.exp(step * decay[head, i])
        for place in range(size):
            given, total = step * x[token, head, place], np.float32(0)
            for i in range(states):
                new = state[head, place, i] * keep[i] + given * inputs[token, group, i]
                state[head, place, i] = new
                total += new * outputs[token, group, i]
            out[token, head, place] = total


@parallel_kernel
def scan(pool: Any, x: Any, steps: Any, decay: Any, inputs: Any, outputs: Any, state: Any, out: Any) -> None:
    """Token by token: state = state * exp(step * decay) + step * x * input; out = the sum of state * output.

    x, out            float32 (tokens, heads, size)
    steps             float32 (tokens, heads): the step sizes [delta]
    decay             float32 (heads, states), or (heads, 1) where all states of a head have the same decay [A]
    inputs, outputs   float32 (tokens, groups, states) [B, C]; head h uses group h * groups // heads
    state             float32 (heads, size, states), updated in place [h]
    """
    parallel_for(pool, x.shape[1], _scan_head, (x, steps, decay, inputs, outputs, state, out))
