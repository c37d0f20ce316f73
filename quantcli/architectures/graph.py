"""The graph flags of a forward pass: every flag that `[graph]` of an architecture file may set, its values and its meaning.

Sizes come from a file's metadata. Whether there are biases, fused projections, experts and RoPE factors follows from its
tensors. Flags are for everything else. Many are expressions over the metadata, in which `{arch}.attention.clamp_kqv` is
`attention_clamp_kqv`, and an absent key is None. The flags that define further variables say so. A flag uses only the keys
that llama.cpp reads for that architecture: the runner ignores the others too. Unknown flags are refused when a file is
read.

`[[graph.variants]]` are tables with an expression `when`, and flags that override the others where it is true. They are for
models where only the size says which of two graphs applies.
"""

# ruff: noqa: RUF009 -- the flags are fields, made by functions

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Final, Self

from quantcli.architectures.expressions import Expression, Scope

_NO_DEFAULT: Final = object()


def _choice(meaning: str, *values: str, default: Any = _NO_DEFAULT) -> Any:
    """One of a few names."""
    return _flag(meaning, default, values=values)


def _names(meaning: str, *default: str) -> Any:
    """Names of tensors without `blk.N.` and `.weight`. Of several, the first that the file has is used."""
    return _flag(meaning, default, kind=tuple)


def _formula(meaning: str, default: str = "None") -> Any:
    """An expression over the metadata, or a number or boolean."""
    return _flag(meaning, Expression(default), kind=Expression)


def _kind(meaning: str, default: str) -> Any:
    """The name of a kind of layer, by the runner's registry."""
    return _flag(meaning, default, kind=str)


def _truth(meaning: str) -> Any:
    return _flag(meaning, False, kind=bool)


def _flag(meaning: str, default: Any, **metadata: Any) -> Any:
    given = {} if default is _NO_DEFAULT else {"default": default}
    return field(metadata={"meaning": meaning, **metadata}, **given)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The graph flags of a forward pass."""

    norm: str = _choice("the kind of norm", "rms", "layer", "layer_without_weight")
    activation: str = _choice(
        "the activation function of the MLP; `clamped_swiglu` clamps gate and up",
        "silu", "gelu", "gelu_erf", "gelu_quick", "relu", "relu_squared", "clamped_swiglu",
    )  # fmt: skip
    mlp: str = _choice(
        "the kind of MLP; `fused_gated`: gate and up are one fused projection", "gated", "plain", "fused_gated", "none"
    )
    residual: str = _choice(
        "sequential or parallel attention and MLP; `as_declared`: by use_parallel_residual. With one norm tensor for both, "
        "always parallel",
        "sequential", "parallel", "as_declared", default="sequential",
    )  # fmt: skip

    attention_norm: tuple[str, ...] = _names("the norm before attention", "attn_norm")
    mlp_norm: tuple[str, ...] = _names("the norm before the MLP", "ffn_norm")
    after_attention_norm: tuple[str, ...] = _names("the norm of the attention output (post-norm)")
    after_mlp_norm: tuple[str, ...] = _names("the norm of the MLP output (post-norm)")
    attention_norm_optional: bool = _truth("whether layers may lack the norm before attention")
    attention_sum_norm: tuple[str, ...] = _names("the norm of the residual stream after attention")
    mlp_sum_norm: tuple[str, ...] = _names("the norm of the residual stream after the MLP")
    output_norm: tuple[str, ...] = _names("the norm before the output", "output_norm")
    embedding_norm: tuple[str, ...] = _names("the norm of the embeddings")
    segments: bool = _truth("whether the embedding of token type 0 is added to all tokens, if the file has one")

    mixer: str = _kind("the token mixer of layers with KV heads, by its name in the runner's registry", "attention")
    recurrent: str = _kind("the token mixer of layers without KV heads; `none`: there are no such layers", "none")
    causal: Expression = _formula(
        "whether attention is causal, not bidirectional; causal where absent", "attention_causal"
    )
    head_norm: str = _choice(
        "QK-norm, per head or over the whole projection, by the length of its weight; `unit_rms` has no weight, and is for "
        "layers with RoPE",
        "none", "rms", "layer", "unit_rms", default="none",
    )  # fmt: skip
    head_norm_after_rope: bool = _truth("whether QK-norm is applied after RoPE")
    head_norm_optional: bool = _truth("whether QK-norm is left out in files without its weights")
    attention_scale: Expression = _formula("scale of attention scores; 1 / sqrt(key size) where absent or 0")
    attention_softcap: Expression = _formula("softcap of attention scores; 0: none")
    attention_sinks: bool = _truth("whether heads have attention sinks")
    projection_clamp: Expression = _formula("clamp of queries, keys and values; 0: none")

    rope: str = _choice(
        "the pairs that RoPE rotates: adjacent elements (GPT-J), or elements of two halves (NeoX)",
        "adjacent", "halves", "none", default="none",
    )  # fmt: skip
    yarn_growth: Expression = _formula(
        "magnitude scaling of YaRN (mscale). `stretch` is the logarithm of the scaling factor; other flags may use it",
        "1 + 0.1 * stretch",
    )
    yarn_fast: Expression = _formula("beta_fast of YaRN: rotations above which a pair is not interpolated", "32")
    yarn_slow: Expression = _formula("beta_slow of YaRN: rotations below which a pair is fully interpolated", "1")
    rope_base: Expression = _formula("the RoPE base; 10000 where absent", "rope_freq_base")
    rope_layers: Expression = _formula(
        "which layers have RoPE: one boolean, or one per layer; `windowed` are the layers with a window", "True"
    )
    window_rope: str = _choice(
        "RoPE of layers with a window: as in the others, or without RoPE scaling",
        "same", "unscaled", default="same",
    )  # fmt: skip
    window_rope_base: Expression = _formula("the RoPE base of layers with a window; as in the others where absent")
    alibi: Expression = _formula("the maximum bias of ALiBi (exponent of the slopes); 0: no ALiBi")
    learned_positions: str = _choice(
        "whether there are learned position embeddings", "never", "always", "where_given", default="never"
    )

    window: Expression = _formula("the window size of attention; 0: no window")
    window_kind: str = _choice(
        "the kind of window; `chunked`: from the last multiple of the size on; `symmetric`: half on both sides",
        "sliding", "chunked", "symmetric", default="sliding",
    )  # fmt: skip
    window_pattern: Expression = _formula(
        "which layers have a window: one boolean, one per layer, or n: all but every n-th layer", "True"
    )
    temperature_scale: Expression = _formula("attention temperature: scale of the logarithm of the position; 0: none", "0")
    temperature_length: Expression = _formula("attention temperature: positions per step", "1")
    temperature_offset: Expression = _formula("attention temperature: offset of positions", "0")
    temperature_layers: str = _choice("layers with attention temperature", "all", "without_rope", default="all")

    embedding_scale: Expression = _formula("scale of embeddings; 1 where absent or 0")
    residual_scale: Expression = _formula("scale of attention and MLP outputs; 1 where absent or 0")
    logit_scale: Expression = _formula("scale of logits; 1 where absent or 0")
    logit_softcap: Expression = _formula("softcap of logits; 0: none")

    expert_gating: str = _choice(
        "the gating function of the router; `as_declared`: by expert_gating_func",
        "softmax", "softmax_of_chosen", "sigmoid", "sqrt_softplus", "sparse_mixer", "as_declared", default="softmax",
    )  # fmt: skip
    expert_gating_undeclared: str = _choice(
        "the gating function where expert_gating_func is absent", "softmax", "sigmoid", default="softmax"
    )
    expert_norm: Expression = _formula("whether the weights of the selected experts are normalized to sum to 1", "False")
    expert_scale: Expression = _formula("scale of expert weights; 1 where absent or 0")
    shared_expert_mlp: str = _choice(
        "the kind of MLP of shared experts; `same`: that of `mlp`", "same", "gated", "plain", "fused_gated", default="same"
    )
    shared_expert_mean: bool = _truth("whether the outputs of shared and routed experts are averaged, not added")
    expert_weights_before: bool = _truth("whether expert weights multiply the inputs of experts, not their outputs")

    classifier: str = _choice(
        "the activation function after the dense layer of a classifier or reranker; `none`: files have no such head",
        "none", "tanh", "gelu", default="none",
    )  # fmt: skip
    classifier_pooling: Expression = _formula(
        "the pooling before a classifier: 1 for the mean of all tokens, else the first token", "classifier_pooling_type"
    )
    missing: tuple[str, ...] = _names("unsupported features of the graph: the model cannot be run")
    variants: tuple[tuple[Expression, Graph], ...] = field(default=(), metadata={"meaning": "see above", "kind": None})

    def __post_init__(self) -> None:
        if self.activation == "clamped_swiglu" and self.mlp == "plain":
            raise ValueError("the activation 'clamped_swiglu' needs a gated MLP, but mlp is 'plain'")

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Self:
        """The flags in a table `[graph]`.

        Raises:
            ValueError: for an unknown flag, an invalid value, or a missing flag.
        """
        own = {name: value for name, value in table.items() if name != "variants"}
        variants = tuple(_variant(own, dict(entry)) for entry in table.get("variants", ()))
        return cls(**{**_parsed(own), "variants": variants})

    def resolve(self, scope: Scope) -> Graph:
        """The graph of the first variant whose condition holds for a file's metadata, or this one.

        Raises:
            ModelError: if a condition cannot be evaluated.
        """
        for when, variant in self.variants:
            if when.evaluate(scope, "the metadata"):
                return variant
        return replace(self, variants=())


_FLAGS: Final = {flag.name: flag for flag in fields(Graph)}


def _variant(own: Mapping[str, Any], entry: dict[str, Any]) -> tuple[Expression, Graph]:
    if "when" not in entry:
        raise ValueError("a variant of the graph lacks 'when'")
    when = Expression(str(entry.pop("when")))
    return when, Graph(**_parsed({**own, **entry}))


def _parsed(table: Mapping[str, Any]) -> dict[str, Any]:
    parsed = {name: _value(name, value) for name, value in table.items()}
    needed = [flag.name for flag in fields(Graph) if flag.default is MISSING and flag.name not in parsed]
    if needed:
        raise ValueError(f"the graph lacks {', '.join(needed)}")
    return parsed


def _value(name: str, value: Any) -> Any:
    flag = _FLAGS.get(name)
    if flag is None or flag.name == "variants":
        raise ValueError(f"unknown graph flag {name!r}, expected one of {', '.join(_FLAGS)}")
    if choices := flag.metadata.get("values"):
        if value not in choices:
            raise ValueError(f"graph flag {name} is {value!r}, expected one of {', '.join(choices)}")
        return value
    kind = flag.metadata["kind"]
    if kind is Expression and isinstance(value, str | int | float):
        return Expression(str(value))
    if kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    expected = {Expression: "an expression", tuple: "a list of texts", bool: "true or false", str: "a name"}[kind]
    raise ValueError(f"graph flag {name} is {value!r}, expected {expected}")
