"""A mixture of experts: a router chooses a few for each token, and weighs what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.architectures.graph import Graph
from quantcli.core.errors import ModelError
from quantcli.kernels.activation_functions import Activation, activation
from quantcli.runner.feed_forward.dense import Mlp, load_mlp
from quantcli.runner.metadata import MetadataReader
from quantcli.runner.model_file import metadata_value
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Matrix, Stack, Weights

Chosen = NDArray[np.int64]
"""Numbers of experts, `(tokens, used)`."""

GATINGS: Final[Mapping[int, str]] = MappingProxyType(
    {1: "softmax", 2: "sigmoid", 3: "softmax_of_chosen", 4: "sqrt_softplus"}
)
"""The values of expert_gating_func."""


@dataclass(frozen=True)
class ExpertSizes:
    """How many experts a mixture has and uses for a token, and in how many groups they are chosen; 0 experts: the file does
    not say, and no layer may have any.

    `norm` says that the weights of the chosen are made to sum to one, `scale` is what they are multiplied by.
    """

    count: int = 0
    used: int = 0
    groups: int = 0
    groups_used: int = 0
    shared: bool = False
    gating: str = "softmax"
    norm: bool = False
    scale: float = 1.0

    def load(self, weights: Weights, graph: Graph, width: int, prefix: str) -> Mixture:
        """The experts of the layer whose tensors begin with `prefix`.

        Raises:
            ModelError: for a tensor that is missing or has the wrong shape.
            UnsupportedError: for a tensor type that is not supported.
        """
        if not self.count:
            key = f"{metadata_value(weights.file, 'general.architecture')}.expert_count"
            raise ModelError(f"{weights.file.path}: there are experts, and no {key} says how many")
        fused = weights.has(f"{prefix}ffn_gate_up_exps.weight")
        up = weights.stack(f"{prefix}ffn_{'gate_up' if fused else 'up'}_exps", self.count, None, width)
        gated = graph.mlp != "plain" and not fused
        gate = weights.stack(f"{prefix}ffn_gate_exps", self.count, up.rows, width) if gated else None
        inner = up.rows // 2 if fused else up.rows
        shared = shared_gate = None
        if self.shared or weights.has(f"{prefix}ffn_up_shexp.weight"):
            shared = load_mlp(weights, graph, width, prefix, "_shexp")
            shared_gate = weights.optional_vector(f"{prefix}ffn_gate_inp_shexp.weight", width)
        return Mixture(
            sizes=self,
            router=weights.matrix(f"{prefix}ffn_gate_inp", self.count, width, packs=False),
            choice_bias=weights.optional_vector(f"{prefix}exp_probs_b.bias", self.count),
            gate=gate,
            up=up,
            down=weights.stack(f"{prefix}ffn_down_exps", self.count, width, inner),
            activation=activation(graph.activation),
            weights_before=graph.expert_weights_before,
            shared=shared,
            shared_gate=shared_gate,
        )


_LEAST_SUM: Final = np.float32(6.103515625e-5)
"""The smallest normal half: what weights that are made to sum to one are divided by at least."""

_NEAR: Final = np.float32(2 * 0.01)
"""Which experts the sparse mixer weighs against the best: those so near to it, relatively (`router_jitter_noise`)."""


def _softmax(x: Floats) -> Floats:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _sigmoid(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-x))


def _same(x: Floats) -> Floats:
    return x


def _root_of_softplus(x: Floats) -> Floats:
    root: Floats = np.sqrt(np.logaddexp(x, np.float32(0)))
    return root


_PROBABILITIES: Final[Mapping[str, Callable[[Floats], Floats]]] = MappingProxyType(
    {
        "softmax": _softmax,
        "sigmoid": _sigmoid,
        "sqrt_softplus": _root_of_softplus,
        "softmax_of_chosen": _same,
    }
)


def best(scores: Floats, count: int) -> Chosen:
    """The places of the `count` largest in each row, the largest first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def choose(logits: Floats, sizes: ExpertSizes, bias: Floats | None) -> tuple[Chosen, Floats]:
    """The experts of each token, and their weights, float32 `(tokens, used)`, from a router's numbers `(tokens, experts)`.

    `bias` counts for the choice and not for the weights. With several groups only the experts of the best are there to be
    chosen: those whose best two sum to the most (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024).
    """
    if sizes.gating == "sparse_mixer":
        return _sparse_mixer(logits, sizes.used)
    probabilities = _PROBABILITIES[sizes.gating](logits)
    scores = probabilities if bias is None else probabilities + bias
    if sizes.groups > 1:
        scores = _best_groups_only(scores, sizes)
    chosen = best(scores, sizes.used)
    weights = np.take_along_axis(probabilities, chosen, axis=1)
    if sizes.gating == "softmax_of_chosen":
        weights = _softmax(weights)
    if sizes.norm:
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), _LEAST_SUM)
    if sizes.scale != 1:
        weights = weights * np.float32(sizes.scale)
    return chosen, weights


def _best_groups_only(scores: Floats, sizes: ExpertSizes) -> Floats:
    grouped = scores.reshape(len(scores), sizes.groups, -1)
    two = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
    kept = np.full_like(grouped, -np.inf)
    for row, groups in enumerate(best(two, sizes.groups_used)):
        kept[row, groups] = grouped[row, groups]
    return kept.reshape(scores.shape)


def _sparse_mixer(logits: Floats, used: int) -> tuple[Chosen, Floats]:
    """One expert after another, each with its share among those near to it (Liu et al., "GRIN", 2024)."""
    left, chosen, weights = logits.copy(), [], []
    for _ in range(used):
        top = left.argmax(axis=1)[:, None]
        most = np.take_along_axis(left, top, axis=1)
        far = (most - logits) / np.maximum(np.abs(logits), most) > _NEAR
        shares = _softmax(np.where(far, np.float32(-np.inf), left))
        chosen.append(top)
        weights.append(np.take_along_axis(shares, top, axis=1))
        np.put_along_axis(left, top, np.float32(-np.inf), axis=1)
    return np.concatenate(chosen, axis=1), np.concatenate(weights, axis=1)


@dataclass(frozen=True, eq=False, slots=True)
class Mixture:
    """The experts of a layer: `gate` is None where they are plain or have gate and up in one. `shared` is one for every
    token, behind a gate of its own where there is a `shared_gate`."""

    sizes: ExpertSizes
    router: Matrix
    choice_bias: Floats | None
    gate: Stack | None
    up: Stack
    down: Stack
    activation: Activation
    weights_before: bool
    shared: Mlp | None
    shared_gate: Floats | None

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Rows `(tokens, width)` to rows of the same shape."""
        chosen, weights = choose(self.router(x), self.sizes, self.choice_bias)
        out = np.zeros_like(x)
        if len(x) == 1:
            for expert, weight in zip(chosen[0].tolist(), weights[0], strict=True):
                out += self._weighed(expert, x, weight)
        else:
            for expert in np.unique(chosen).tolist():
                rows, place = np.nonzero(chosen == expert)
                out[rows] += self._weighed(expert, x[rows], weights[rows, place][:, None])
        if self.shared is not None:
            given = self.shared(x, step)
            if self.shared_gate is not None:
                given *= _sigmoid(x @ self.shared_gate)[:, None]
            out += given
        return out

    def _weighed(self, expert: int, x: Floats, weight: Floats | np.float32) -> Floats:
        if self.weights_before:
            return self._expert(expert, x * weight)
        return self._expert(expert, x) * weight

    def _expert(self, expert: int, x: Floats) -> Floats:
        up = self.up(expert, x)
        if self.gate is not None:
            gate = self.gate(expert, x)
            self.activation.gate(gate, 0, up, 0, gate)
            return self.down(expert, gate)
        if self.down.columns == up.shape[1]:
            self.activation.apply(up)
            return self.down(expert, up)
        inner = np.empty((len(x), self.down.columns), np.float32)
        self.activation.gate(up, 0, up, self.down.columns, inner)
        return self.down(expert, inner)


def read_sizes(read: MetadataReader, graph: Graph) -> ExpertSizes:
    """The experts of a model. Expressions may use `expert_norm`, and the code of the gating as `expert_gating`.

    Raises:
        ModelError: for metadata that are missing or contradict each other.
    """
    count = read.count("expert_count", 0)
    if not count:
        return ExpertSizes()
    used, groups = read.count("expert_used_count"), read.count("expert_group_count", 0)
    groups_used = read.count("expert_group_used_count", 0)
    if used > count:
        read.refuse("expert_used_count", used, f"no more than the {count} experts")
    if groups > 1:
        if count % groups or count == groups:
            read.refuse("expert_group_count", groups, f"groups of two and more of the {count} experts")
        if not 0 < groups_used <= groups:
            read.refuse("expert_group_used_count", groups_used, f"some of the {groups} groups")
        if used > groups_used * (count // groups):
            read.refuse("expert_used_count", used, f"no more than {groups_used} of {groups} groups hold")
    sizes = ExpertSizes(
        count=count,
        used=used,
        groups=groups,
        groups_used=groups_used,
        shared=bool(read.count("expert_shared_count", 0) or read.count("expert_shared_feed_forward_length", 0)),
        gating=_gating(read, graph) if graph.expert_gating == "as_declared" else graph.expert_gating,
        norm=bool(read.evaluate(graph.expert_norm)),
        scale=read.formula("expert_scale", graph.expert_scale) or 1.0,
    )
    codes = (code for code, name in GATINGS.items() if name == sizes.gating)
    read.scope["expert_norm"], read.scope["expert_gating"] = sizes.norm, next(codes, 0)
    return sizes


def _gating(read: MetadataReader, graph: Graph) -> str:
    declared = read.count("expert_gating_func", 0)
    if declared == 0:
        return graph.expert_gating_undeclared
    if declared not in GATINGS:
        read.refuse("expert_gating_func", declared, f"one of {', '.join(map(str, GATINGS))}")
    return GATINGS[declared]
