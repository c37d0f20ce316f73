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

    norm: str = _choice("how rows are normed", "rms", "layer", "layer_without_weight")
    activation: str = _choice(
        "the nonlinearity of the MLP; `clamped_swiglu` bounds both sides of the gate",
        "silu", "gelu", "gelu_erf", "gelu_quick", "relu", "relu_squared", "clamped_swiglu",
    )  # fmt: skip
    mlp: str = _choice(
        "`fused_gated`: gate and up are the halves of one projection", "gated", "plain", "fused_gated", "none"
    )
    residual: str = _choice(
        "whether attention and MLP follow one another or both read a layer's input; `as_declared` by "
        "use_parallel_residual. Where the norms before both are one tensor they both read it anyway",
        "sequential", "parallel", "as_declared", default="sequential",
    )  # fmt: skip

    attention_norm: tuple[str, ...] = _names("the norm before attention", "attn_norm")
    mlp_norm: tuple[str, ...] = _names("the norm before the MLP", "ffn_norm")
    after_attention_norm: tuple[str, ...] = _names("the norm of what attention gives")
    after_mlp_norm: tuple[str, ...] = _names("the norm of what the MLP gives")
    attention_norm_optional: bool = _truth("whether a layer may lack the norm before attention")
    attention_sum_norm: tuple[str, ...] = _names("the norm of the residual stream behind attention")
    mlp_sum_norm: tuple[str, ...] = _names("the norm of the residual stream behind the MLP")
    output_norm: tuple[str, ...] = _names("the norm before the output", "output_norm")
    embedding_norm: tuple[str, ...] = _names("the norm of the embeddings")
    segments: bool = _truth("whether every token gets the embedding of a first segment, where the file has one")

    mixer: str = _kind("the token mixer of layers with key-value heads, by its name in the runner's registry", "attention")
    recurrent: str = _kind("that of layers without; `none`: there are no such layers", "none")
    causal: Expression = _formula(
        "whether a token sees those before it and not all others; it does where absent", "attention_causal"
    )
    head_norm: str = _choice(
        "the norm of queries and keys, of each head or over all by the length of its weights; `unit_rms` has none, and is "
        "for layers with rotary positions",
        "none", "rms", "layer", "unit_rms", default="none",
    )  # fmt: skip
    head_norm_after_rope: bool = _truth("whether queries and keys are normed after RoPE")
    head_norm_optional: bool = _truth("whether a file may lack the weights, and has no such norm then")
    attention_scale: Expression = _formula("what scores are multiplied by; 1 / sqrt(key size) where absent or 0")
    attention_softcap: Expression = _formula("a bound to scores, softly; 0: none")
    attention_sinks: bool = _truth("whether every head has a learned score for attending to nothing")
    projection_clamp: Expression = _formula("a bound to queries, keys and values; 0: none")

    rope: str = _choice(
        "which numbers of a head are rotated together: neighbours, or those of two halves",
        "adjacent", "halves", "none", default="none",
    )  # fmt: skip
    yarn_growth: Expression = _formula(
        "what YaRN multiplies rotated pairs by; `stretch` is the logarithm of its factor. Other flags may use it",
        "1 + 0.1 * stretch",
    )
    yarn_fast: Expression = _formula("rotations within the original context from which on YaRN keeps a frequency", "32")
    yarn_slow: Expression = _formula("rotations up to which it slows a pair down by the whole factor", "1")
    rope_base: Expression = _formula("the base of rotary frequencies; 10000 where absent", "rope_freq_base")
    rope_layers: Expression = _formula(
        "which layers have RoPE: one truth, or one per layer; `windowed` is those with a window", "True"
    )
    window_rope: str = _choice(
        "rotary positions of layers with a window: as in the others, or without their scaling",
        "same", "unscaled", default="same",
    )  # fmt: skip
    window_rope_base: Expression = _formula("their base; as in the others where absent")
    alibi: Expression = _formula("the largest slope's exponent of biases that grow with distance (ALiBi); 0: none")
    learned_positions: str = _choice(
        "whether positions have embeddings", "never", "always", "where_given", default="never"
    )

    window: Expression = _formula("how many positions a token sees; 0: all")
    window_kind: str = _choice(
        "`sliding`: the last ones; `chunked`: those since the last multiple; `symmetric`: half of it on both sides",
        "sliding", "chunked", "symmetric", default="sliding",
    )  # fmt: skip
    window_pattern: Expression = _formula(
        "which layers have a window: one truth, one per layer, or a number, of so many layers all but the last", "True"
    )
    temperature_scale: Expression = _formula("by how much scores grow with the logarithm of the position; 0: not", "0")
    temperature_length: Expression = _formula("positions to a step of that growth", "1")
    temperature_offset: Expression = _formula("what is added to positions for it", "0")
    temperature_layers: str = _choice("the layers it is for", "all", "without_rope", default="all")

    embedding_scale: Expression = _formula("what embeddings are multiplied by; 1 where absent or 0")
    residual_scale: Expression = _formula("what each half of a layer is multiplied by; 1 where absent or 0")
    logit_scale: Expression = _formula("what logits are multiplied by; 1 where absent or 0")
    logit_softcap: Expression = _formula("a bound to logits, softly; 0: none")

    expert_gating: str = _choice(
        "how a router's numbers become weights of experts; `as_declared` by expert_gating_func",
        "softmax", "softmax_of_chosen", "sigmoid", "sqrt_softplus", "sparse_mixer", "as_declared", default="softmax",
    )  # fmt: skip
    expert_gating_undeclared: str = _choice(
        "the same where it is as declared and nothing is declared", "softmax", "sigmoid", default="softmax"
    )
    expert_norm: Expression = _formula("whether the weights of the chosen experts are made to sum to one", "False")
    expert_scale: Expression = _formula("what the weights of experts are multiplied by; 1 where absent or 0")
    expert_weights_before: bool = _truth("whether an expert's input is multiplied by its weight, not its output")

    heads: tuple[str, ...] = _names("how tensors begin that a file may have and a forward pass does not: classifiers")
    missing: tuple[str, ...] = _names("what the graph needs and nothing here can say: the model cannot be run")
    variants: tuple[tuple[Expression, Graph], ...] = field(default=(), metadata={"meaning": "see above", "kind": None})

    def __post_init__(self) -> None:
        if self.activation == "clamped_swiglu" and self.mlp == "plain":
            raise ValueError("the activation 'clamped_swiglu' needs a gate, and the MLP is plain")

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
        raise ValueError(f"the graph does not say {', '.join(needed)}")
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
