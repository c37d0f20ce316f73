"""Mixture of experts (MoE): a router selects the top-k experts of each token and weights their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantcli.architectures.graph import Graph
from quantcli.core.errors import ModelError
from quantcli.kernels.activation_functions import Activation, activation
from quantcli.kernels.compilation import tracing
from quantcli.kernels.products.few_columns import FEW
from quantcli.runner.feed_forward.dense import Mlp, load_mlp
from quantcli.runner.metadata import MetadataReader
from quantcli.runner.model_file import metadata_value
from quantcli.runner.step import Step
from quantcli.runner.weights import Floats, Matrix, Stack, Weights

Chosen = NDArray[np.int64]
"""Indices of experts, `(tokens, experts used)`."""

GATINGS: Final[Mapping[int, str]] = MappingProxyType(
    {1: "softmax", 2: "sigmoid", 3: "softmax_of_chosen", 4: "sqrt_softplus"}
)
"""The router's gating functions, by the value of expert_gating_func."""


@dataclass(frozen=True)
class ExpertSizes:
    """The MoE hyperparameters.

    - `count` experts; 0: the metadata do not say, and no layer may have experts.
    - `used` experts per token (top-k).
    - `groups` of experts, of which `groups_used` per token (group-limited routing).
    - `shared` says that there are shared experts.
    - `norm` says that the weights of the selected experts are normalized to sum to one. `scale` multiplies them.
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
            raise ModelError(f"{weights.file.path}: there are expert tensors, but no {key}")
        fused = weights.has(f"{prefix}ffn_gate_up_exps.weight")
        up = weights.stack(f"{prefix}ffn_{'gate_up' if fused else 'up'}_exps", self.count, None, width)
        gated = graph.mlp != "plain" and not fused
        gate = weights.stack(f"{prefix}ffn_gate_exps", self.count, up.rows, width) if gated else None
        inner = up.rows // 2 if fused else up.rows
        shared = shared_gate = None
        if self.shared or weights.has(f"{prefix}ffn_up_shexp.weight"):
            own = graph.mlp if graph.shared_expert_mlp == "same" else graph.shared_expert_mlp
            shared = load_mlp(weights, replace(graph, mlp=own), width, prefix, "_shexp")
            shared_gate = weights.optional_vector(f"{prefix}ffn_gate_inp_shexp.weight", width)
        return Mixture(
            sizes=self,
            router=weights.matrix(f"{prefix}ffn_gate_inp", self.count, width, packs=False),
            choice_bias=self._choice_bias(weights, prefix),
            gate=gate,
            up=up,
            down=weights.stack(f"{prefix}ffn_down_exps", self.count, width, inner),
            activation=activation(graph.activation),
            weights_before=graph.expert_weights_before,
            shared=shared,
            shared_gate=shared_gate,
            mean=graph.shared_expert_mean,
        )

    def _choice_bias(self, weights: Weights, prefix: str) -> Floats | None:
        """The router's bias, whose name lacks its ending in files of some architectures."""
        name = f"{prefix}exp_probs_b"
        return weights.optional_vector(name if weights.has(name) else f"{name}.bias", self.count)


_LEAST_SUM: Final = np.float32(6.103515625e-5)
"""The smallest normal float16: the least divisor where expert weights are normalized to sum to one."""

_NEAR: Final = np.float32(2 * 0.01)
"""SparseMixer's threshold: experts whose logits are relatively further from the best are masked (`router_jitter_noise`)."""


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
    """The indices of the `count` largest scores in each row, in descending order."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def choose(logits: Floats, sizes: ExpertSizes, bias: Floats | None) -> tuple[Chosen, Floats]:
    """Top-k routing from router logits `(tokens, experts)`.

    Returns the experts of each token and their weights, float32 `(tokens, used)`. `bias` is added for the selection only,
    not for the weights. With group-limited routing, only experts of the best groups are selected. A group's score is the
    sum of its two best experts' (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024).
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
    """SparseMixer: one expert after another, weighted by a softmax over the experts near it (Liu et al., "GRIN", 2024)."""
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
    """An MoE layer.

    `gate` is None for experts without a gate, and where `up` is a fused gate and up projection. `shared` is the shared
    expert, whose output is multiplied by the sigmoid of `shared_gate` where there is one, and added to that of the others,
    or with `mean` averaged with it. `choice_bias` is added to the router's scores for the selection. `weights_before`
    multiplies an expert's input by its weight, not its output.
    """

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
    mean: bool

    def __call__(self, x: Floats, step: Step) -> Floats:
        """Hidden states `(tokens, width)` to an output of the same shape."""
        chosen, weights = choose(self.router(x), self.sizes, self.choice_bias)
        out = np.zeros_like(x)
        if tracing():
            for count in dict.fromkeys((*FEW, len(x))):  # an expert may get any number of the tokens
                if count <= len(x):
                    self._weighed(0, x[:count], weights[:count, :1])
        elif len(x) == 1:
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
            if self.mean:
                out *= np.float32(0.5)
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
    """The MoE hyperparameters of a model.

    Puts `expert_norm`, and `expert_gating`, the value of expert_gating_func, into the scope of later expressions.

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
