"""The kinds of layers once more, plain and slow: float64, loops over tokens and heads, no cache, nothing of the package.

Each function takes the weights `w` of a layer by their GGUF names without `blk.N.` and rows `x`, float64 `(tokens, width)`.
It gives rows of the same shape. Matrices are `(rows, columns)` and are multiplied as `W @ x`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = Mapping[str, Array]
Sees = Callable[[int, int], bool]
"""Whether the query of a position sees the key of another."""


def linear(w: Weights, name: str, x: Array) -> Array:
    return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def rms_norm(x: Array, weight: Array | float = 1.0, epsilon: float = 1e-5) -> Array:
    return x / np.sqrt((x**2).mean() + epsilon) * weight


def rope(x: Array, position: int, base: float, adjacent: bool) -> Array:
    out, size = x.copy(), len(x)
    for pair in range(size // 2):
        angle = position * base ** (-2 * pair / size)
        i, j = (2 * pair, 2 * pair + 1) if adjacent else (pair, pair + size // 2)
        out[i] = x[i] * np.cos(angle) - x[j] * np.sin(angle)
        out[j] = x[i] * np.sin(angle) + x[j] * np.cos(angle)
    return out


def attend(
    queries: list[Array], keys: list[Array], values: list[Array], scale: float, sees: Sees,
    slope: float = 0.0, softcap: float = 0.0, sink: float | None = None,
) -> list[Array]:  # fmt: skip
    """What one head mixes of values, for each query."""
    mixed = []
    for position, query in enumerate(queries):
        seen = [other for other in range(len(keys)) if sees(position, other)]
        scores = np.array([scale * (query @ keys[other]) for other in seen])
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        scores = scores - slope * np.abs(np.array(seen) - position)
        shares = softmax(scores if sink is None else np.append(scores, sink))
        mixed.append(sum(share * values[other] for share, other in zip(shares, seen, strict=False)))
    return mixed


def causal(query: int, key: int) -> bool:
    return key <= query


def attention(
    w: Weights, x: Array, *, heads: int, kv_heads: int, key_size: int, value_size: int, scale: float, sees: Sees = causal,
    rotated: int = 0, base: float = 1e4, adjacent: bool = True, clamp: float = 0.0, softcap: float = 0.0,
    alibi: float = 0.0, temperature: Callable[[int], float] = lambda position: 1.0,
) -> Array:  # fmt: skip
    """`rotated` numbers of each head have positions; `alibi` is the largest exponent, for heads of a power of two."""
    extents = (("q", heads, key_size), ("k", kv_heads, key_size), ("v", kv_heads, value_size))
    rows: dict[str, list[Array]] = {name: [] for name, *_ in extents}
    for position, row in enumerate(x):
        if "attn_qkv.weight" in w:
            cuts = np.cumsum([count * size for _, count, size in extents])[:-1]
            found = np.split(linear(w, "attn_qkv", row), cuts)
        else:
            found = [linear(w, f"attn_{name}", row) for name, *_ in extents]
        for (name, count, size), numbers in zip(extents, found, strict=True):
            parts = (np.clip(numbers, -clamp, clamp) if clamp else numbers).reshape(count, size)
            if f"attn_{name}_norm.weight" in w:
                parts = np.array([rms_norm(part, w[f"attn_{name}_norm.weight"]) for part in parts])
            if name != "v" and rotated:
                turned = [rope(part[:rotated], position, base, adjacent) for part in parts]
                parts = np.concatenate([turned, parts[:, rotated:]], axis=1)
            rows[name].append(parts * temperature(position) if name == "q" else parts)
    mixed = []
    for head in range(heads):
        shared = head // (heads // kv_heads)
        mixed.append(
            attend(
                [row[head] for row in rows["q"]], [row[shared] for row in rows["k"]], [row[shared] for row in rows["v"]],
                scale, sees, slope=2.0 ** (-alibi * (head + 1) / heads) if alibi else 0.0, softcap=softcap,
                sink=w["attn_sinks.weight"][head] if "attn_sinks.weight" in w else None,
            )
        )  # fmt: skip
    return np.array([linear(w, "attn_output", np.concatenate(row)) for row in zip(*mixed, strict=True)])


def mla(
    w: Weights, x: Array, *, heads: int, rank: int, key_size: int, value_size: int, rope_size: int, scale: float,
    base: float = 1e4, adjacent: bool = True,
) -> Array:  # fmt: skip
    """Keys and values of every head are made in full, whichever form the up-projections have."""
    plain = key_size - rope_size
    if "attn_kv_b.weight" in w:
        both = w["attn_kv_b.weight"].reshape(heads, plain + value_size, rank)
        key_up, value_up = both[:, :plain], both[:, plain:]
    else:
        key_up, value_up = w["attn_k_b.weight"].transpose(0, 2, 1), w["attn_v_b.weight"]
    queries, keys, values = [], [], []
    for position, row in enumerate(x):
        if "attn_q_a.weight" in w:
            query = linear(w, "attn_q_b", rms_norm(linear(w, "attn_q_a", row), w["attn_q_a_norm.weight"]))
        else:
            query = linear(w, "attn_q", row)
        down = linear(w, "attn_kv_a_mqa", row)
        compressed = rms_norm(down[:rank], w["attn_kv_a_norm.weight"])
        turned = rope(down[rank:], position, base, adjacent)
        parts = query.reshape(heads, key_size)
        queries.append([np.append(part[:plain], rope(part[plain:], position, base, adjacent)) for part in parts])
        keys.append([np.append(up @ compressed, turned) for up in key_up])
        values.append([up @ compressed for up in value_up])
    mixed = [
        attend([row[head] for row in queries], [row[head] for row in keys], [row[head] for row in values], scale, causal)
        for head in range(heads)
    ]
    return np.array([linear(w, "attn_output", np.concatenate(row)) for row in zip(*mixed, strict=True)])


def convolution(kernel: Array, x: Array) -> Array:
    """Each column of `x` under its row of `kernel`, `(columns, size)`: the newest token meets the last weight."""
    out, size = np.zeros_like(x), kernel.shape[1]
    for token in range(len(x)):
        for back in range(min(size, token + 1)):
            out[token] += kernel[:, size - 1 - back] * x[token - back]
    return out


def short_convolution(w: Weights, x: Array) -> Array:
    width = x.shape[1]
    projected = np.array([linear(w, "shortconv.in_proj", row) for row in x])
    before, behind, value = (projected[:, start : start + width] for start in (0, width, 2 * width))
    mixed = behind * convolution(w["shortconv.conv.weight"], before * value)
    return np.array([linear(w, "shortconv.out_proj", row) for row in mixed])


def mamba(w: Weights, x: Array, *, inner: int, states: int, rank: int) -> Array:
    projected = np.array([linear(w, "ssm_in", row) for row in x])
    convolved = silu(convolution(w["ssm_conv1d.weight"], projected[:, :inner]) + w.get("ssm_conv1d.bias", 0))
    state, out = np.zeros((inner, states)), []
    for row, gate in zip(convolved, projected[:, inner:], strict=True):
        steps, b, c = np.split(linear(w, "ssm_x", row), [rank, rank + states])
        if "ssm_dt_norm.weight" in w:
            steps, b, c = (rms_norm(v, w[f"ssm_{n}_norm.weight"]) for n, v in (("dt", steps), ("b", b), ("c", c)))
        steps = softplus(linear(w, "ssm_dt", steps))
        for channel in range(inner):
            decay = np.exp(steps[channel] * w["ssm_a"][channel])
            state[channel] = state[channel] * decay + steps[channel] * row[channel] * b
        out.append(linear(w, "ssm_out", (state @ c + row * w["ssm_d"]) * silu(gate)))
    return np.array(out)


def mamba2(w: Weights, x: Array, *, inner: int, states: int, heads: int, groups: int) -> Array:
    size, per_group = inner // heads, heads // groups
    projected = np.array([linear(w, "ssm_in", row) for row in x])
    gates, convolved, steps = np.split(projected, [inner, 2 * inner + 2 * groups * states], axis=1)
    convolved = silu(convolution(w["ssm_conv1d.weight"], convolved) + w.get("ssm_conv1d.bias", 0))
    steps = softplus(steps + w["ssm_dt.bias"])
    state, out = np.zeros((heads, size, states)), []
    for token, gate in enumerate(gates):
        values, b, c = np.split(convolved[token], [inner, inner + groups * states])
        values, b, c = values.reshape(heads, size), b.reshape(groups, states), c.reshape(groups, states)
        mixed = np.zeros((heads, size))
        for head in range(heads):
            step, group = steps[token, head], head // per_group
            state[head] = state[head] * np.exp(step * w["ssm_a"].reshape(-1)[head])
            state[head] += step * np.outer(values[head], b[group])
            mixed[head] = state[head] @ c[group] + values[head] * w["ssm_d"].reshape(-1)[head]
        gated = mixed.reshape(-1) * silu(gate)
        if "ssm_norm.weight" in w:
            weight = w["ssm_norm.weight"].reshape(groups, -1)
            parts = gated.reshape(groups, -1)
            gated = np.concatenate([rms_norm(part, own) for part, own in zip(parts, weight, strict=True)])
        out.append(linear(w, "ssm_out", gated))
    return np.array(out)


def dense(w: Weights, x: Array, *, form: str, suffix: str = "") -> Array:
    """`form`: gated, plain or fused_gated; the activation is SiLU."""
    out = []
    for row in x:
        up = linear(w, f"ffn_up{suffix}", row)
        if form == "gated":
            inner = silu(linear(w, f"ffn_gate{suffix}", row)) * up
        elif form == "plain":
            inner = silu(up)
        else:
            half = len(up) // 2
            inner = silu(up[:half]) * up[half:]
        out.append(linear(w, f"ffn_down{suffix}", inner))
    return np.array(out)


def sparse_mixer(logits: Array, used: int) -> tuple[list[int], Array]:
    """One expert after another. The share of each is its softmax among those left whose logits are near to it."""
    left, chosen, shares = list(range(len(logits))), [], []
    for _ in range(used):
        top = max(left, key=lambda expert: logits[expert])
        near = [i for i in left if (logits[top] - logits[i]) / max(abs(logits[i]), logits[top]) <= 0.02]
        chosen.append(top)
        shares.append(np.exp(logits[top]) / np.exp(logits[near]).sum())
        left.remove(top)
    return chosen, np.array(shares)


def experts(
    w: Weights, x: Array, *, used: int, gating: str = "softmax", groups: int = 1, groups_used: int = 1, norm: bool = False,
    scale: float = 1.0, weights_before: bool = False, mean: bool = False,
) -> Array:  # fmt: skip
    """Gated experts, gate and up apart or fused; token by token."""
    gates = {
        "softmax": softmax, "sigmoid": sigmoid, "softmax_of_chosen": lambda scores: scores,
        "sqrt_softplus": lambda scores: np.sqrt(softplus(scores)),
    }  # fmt: skip
    out = []
    for row in x:
        logits = linear(w, "ffn_gate_inp", row)
        if gating == "sparse_mixer":
            chosen, shares = sparse_mixer(logits, used)
        else:
            weights = gates[gating](logits)
            scores = weights + w.get("exp_probs_b.bias", w.get("exp_probs_b", 0))
            members = np.array_split(np.arange(len(scores)), groups)
            members.sort(key=lambda group: -np.sort(scores[group])[-2:].sum())
            allowed = np.concatenate(members[:groups_used])
            chosen = sorted(allowed, key=lambda expert: -scores[expert])[:used]
            shares = weights[chosen]
        if gating == "softmax_of_chosen":
            shares = softmax(shares)
        if norm:
            shares = shares / shares.sum()
        total = np.zeros_like(row)
        for share, expert in zip(shares * scale, chosen, strict=True):
            given = row * share if weights_before else row
            if "ffn_gate_up_exps.weight" in w:
                gate, up = np.split(w["ffn_gate_up_exps.weight"][expert] @ given, 2)
            else:
                gate, up = (w[f"ffn_{name}_exps.weight"][expert] @ given for name in ("gate", "up"))
            total += w["ffn_down_exps.weight"][expert] @ (silu(gate) * up) * (1.0 if weights_before else share)
        if "ffn_up_shexp.weight" in w:
            shared = dense(w, row[None], form="gated", suffix="_shexp")[0]
            gate_weight = w.get("ffn_gate_inp_shexp.weight")
            total += shared if gate_weight is None else shared * sigmoid(gate_weight @ row)
            total /= 1 + mean
        out.append(total)
    return np.array(out)
