"""A model's sizes and constants: from the metadata of its GGUF file, and from the flags of its architecture's graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from quantcli.architectures.graph import Graph
from quantcli.architectures.loader import graph_of
from quantcli.formats.errors import ModelError, UnsupportedError, shown
from quantcli.runner.ignored import warn_of_ignored
from quantcli.runner.metadata import MOST, REQUIRED, MetadataReader, shown_value
from quantcli.runner.model_file import ModelFile, metadata_value

SCALINGS: Final = ("none", "linear", "yarn", "longrope")
"""Kinds of rope scaling."""


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles are stretched beyond the length a model was first trained on. `kind` is one of `SCALINGS`, and
    `growth` what YaRN multiplies turned pairs by."""

    kind: str
    factor: float
    original_context: int
    attention: float
    beta_fast: float
    beta_slow: float
    growth: float


@dataclass(frozen=True)
class LayerSizes:
    """What a layer's attention is made of, and with that its part of the cache.

    `kv_heads` is 0 for a layer without attention. `window` positions are seen, the last ones or, where `chunked`, those
    since the last multiple; 0: all. `ahead` positions behind its own are seen too, where they have been stored. A
    `value_size` of 0 says that values are the first numbers of the keys. `states` are the shapes of what a recurrent layer
    remembers, in float32.
    """

    heads: int
    kv_heads: int
    key_size: int
    value_size: int
    window: int
    chunked: bool
    turns: bool
    ahead: int = 0
    states: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Latent:
    """Sizes of attention by way of a narrow projection: of that, and of a head's keys and values.

    `query_rank` is 0 where queries are projected at once. `absorbed` attention reads the narrow rows themselves.
    """

    query_rank: int
    rank: int
    key_size: int
    value_size: int
    absorbed: bool


@dataclass(frozen=True)
class StateSpace:
    """Sizes of state-space layers: `reach` tokens of a convolution over `inner` numbers, `states` for each of them.

    `rank` is that of steps, or the number of heads; `groups` share what goes into the states and comes out. `normed` says
    that steps, inputs and outputs are.
    """

    reach: int
    inner: int
    states: int
    rank: int
    groups: int
    normed: bool


@dataclass(frozen=True)
class Experts:
    """How many experts a mixture has and uses, and in how many groups they are chosen."""

    count: int
    used: int
    groups: int
    groups_used: int
    shared: bool
    gating: str
    norm: bool
    scale: float


@dataclass(frozen=True)
class Temperature:
    """How queries grow with their position p: by log(floor((p + offset) / length) + 1) * scale + 1."""

    scale: float
    length: float
    offset: float


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes in numbers of float32, by the names of the GGUF specification; `layer` has those that layers differ in.

    `layers` are those that are run. Behind them a file may have `unrun_layers` more, which predict further tokens.
    """

    architecture: str
    layers: int
    unrun_layers: int
    context: int
    width: int
    layer: tuple[LayerSizes, ...]
    norm_epsilon: float
    rope_size: int
    rope_base: float
    window_rope_base: float
    rope_scaling: RopeScaling
    attention_scale: float
    attention_softcap: float
    clamp: float
    alibi: float
    temperature: Temperature | None
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_softcap: float
    parallel: bool
    causal: bool
    latent: Latent | None
    state_space: StateSpace | None
    experts: Experts | None

    @property
    def recurrent(self) -> bool:
        """Whether some layer remembers more than keys and values, so that the past cannot be cut or moved."""
        return any(sizes.states for sizes in self.layer)


def read_hyperparameters(file: ModelFile) -> tuple[Hyperparameters, Graph]:
    """The sizes and the forward pass of a file.

    Raises:
        ModelError: for a key that is missing, not of its kind, or contradicts another.
        UnsupportedError: for an architecture that cannot be run; what it takes is named.
    """
    _check_is_model(file)
    name = metadata_value(file, "general.architecture")
    if not isinstance(name, str):
        raise ModelError(f"{file.path}: no general.architecture, so nothing says how to run it")
    read = MetadataReader(file, name)
    graph = graph_of(name).resolve(read.scope)
    if graph.missing:
        raise UnsupportedError(f"architecture {name!r} cannot be run: its graph needs {', '.join(graph.missing)}")
    layers, unrun = _layer_counts(read)
    scaling = _rope_scaling(read, graph)
    latent = _latent(read, graph)
    space = _state_space(read) if graph.recurrent in ("mamba", "mamba2") else None
    layer = _layer_sizes(read, graph, layers + unrun, latent, space)[:layers]
    key_size = latent.key_size if latent else max(sizes.key_size for sizes in layer)
    rope_base = read.formula("rope_base", graph.rope_base, 10000.0)
    sizes = Hyperparameters(
        architecture=name,
        layers=layers,
        unrun_layers=unrun,
        context=read.count("context_length"),
        width=read.count("embedding_length"),
        layer=layer,
        norm_epsilon=_norm_epsilon(read, graph),
        rope_size=_rope_size(read, graph, layer, key_size),
        rope_base=_base(read, graph, rope_base),
        window_rope_base=_base(read, graph, read.formula("window_rope_base", graph.window_rope_base, rope_base)),
        rope_scaling=scaling,
        attention_scale=read.formula("attention_scale", graph.attention_scale) or 1 / math.sqrt(max(1, key_size)),
        attention_softcap=read.formula("attention_softcap", graph.attention_softcap),
        clamp=read.formula("projection_clamp", graph.projection_clamp),
        alibi=read.formula("alibi", graph.alibi),
        temperature=_temperature(read, graph),
        embedding_scale=read.formula("embedding_scale", graph.embedding_scale) or 1.0,
        residual_scale=read.formula("residual_scale", graph.residual_scale) or 1.0,
        logit_scale=read.formula("logit_scale", graph.logit_scale) or 1.0,
        logit_softcap=read.formula("logit_softcap", graph.logit_softcap),
        parallel=_parallel(read, graph),
        causal=_causal(read, graph),
        latent=latent,
        state_space=space,
        experts=_experts(read, graph),
    )
    _warn_of_ignored(read, graph, sizes)
    return sizes, graph


def _warn_of_ignored(read: MetadataReader, graph: Graph, sizes: Hyperparameters) -> None:
    gating = sizes.experts.gating if sizes.experts else graph.expert_gating
    computed = {
        "score_scale": sizes.attention_scale,
        "yarn_growth": sizes.rope_scaling.growth,
        "windows": any(layer.window for layer in sizes.layer),
        "expert_norm": sizes.experts is not None and sizes.experts.norm,
        "expert_gating": next((code for code, name in GATINGS.items() if name == gating), 0),
    }
    warn_of_ignored(read, computed)


def _check_is_model(file: ModelFile) -> None:
    """Other files bear a model's architecture too: adapters, what turns pictures into tokens, vocabularies alone."""
    kind = metadata_value(file, "general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        raise ModelError(f"{file.path}: cannot be run by itself: general.type is {shown_value(kind)}, expected 'model'")
    if not file.tensors:
        raise ModelError(f"{file.path}: cannot be run: it has no tensors, as a file of a vocabulary alone")


def _causal(read: MetadataReader, graph: Graph) -> bool:
    return bool(read.formula("causal", graph.causal, 1.0))


def _layer_counts(read: MetadataReader) -> tuple[int, int]:
    """Layers that are run, and those behind them that are not."""
    layers = read.count("block_count")
    tensors = len(read.file.tensors)
    if layers > tensors:
        read.refuse("block_count", layers, f"no more layers than the file's {tensors} tensors")
    unrun = read.count("nextn_predict_layers", 0)
    if unrun >= layers:
        read.refuse("nextn_predict_layers", unrun, f"fewer than the {layers} layers")
    return layers - unrun, unrun


def _latent(read: MetadataReader, graph: Graph) -> Latent | None:
    if graph.mixer != "latent":
        return None
    absorbed = "blk.0.attn_k_b.weight" in read.file.tensors
    heads, width = read.counts("attention.head_count", read.count("block_count"))[0], read.count("embedding_length")
    key_size = read.count("attention.key_length_mla", 0) or read.count("attention.key_length", width // max(1, heads))
    value_size = read.count("attention.value_length_mla", 0) or read.count(
        "attention.value_length", width // max(1, heads)
    )
    return Latent(
        query_rank=read.count("attention.q_lora_rank", 0),
        rank=read.count("attention.kv_lora_rank"),
        key_size=key_size,
        value_size=value_size,
        absorbed=absorbed,
    )


def _layer_sizes(
    read: MetadataReader, graph: Graph, layers: int, latent: Latent | None, space: StateSpace | None
) -> tuple[LayerSizes, ...]:
    """The heads of each layer, its window, and whether it turns queries and keys."""
    heads = read.counts("attention.head_count", layers, 0 if graph.recurrent != "none" else REQUIRED)
    kv_heads = heads if latent and not latent.absorbed else read.counts("attention.head_count_kv", layers, list(heads))
    window, causal = read.count_formula("window", graph.window), _causal(read, graph)
    # Half of a symmetric window is on each side of a token.
    reach = window // 2 + 1 if graph.window_kind == "symmetric" else window
    windowed = [bool(window) and chosen for chosen in read.layer_formula("window_pattern", graph.window_pattern, layers)]
    read.scope["windowed"] = windowed
    turned = read.layer_formula("rope_layers", graph.rope_layers, layers)
    sizes = []
    for index in range(layers):
        attends = kv_heads[index] > 0
        if not attends and graph.recurrent == "none":
            raise ModelError(f"{read.file.path}: layer {index} has no key-value heads, and its graph no other layers")
        if attends and (heads[index] < 1 or heads[index] % kv_heads[index]):
            raise ModelError(
                f"{read.file.path}: {heads[index]} attention heads cannot share {kv_heads[index]} key-value heads"
            )
        key_size, value_size = _head_sizes(read, latent, max(1, heads[index]))
        sizes.append(
            LayerSizes(
                heads=heads[index],
                kv_heads=1 if attends and latent and latent.absorbed else kv_heads[index],
                key_size=key_size if attends else 0,
                value_size=value_size if attends else 0,
                window=reach if windowed[index] else 0,
                chunked=graph.window_kind == "chunked",
                ahead=0 if causal else reach - 1 if windowed[index] else MOST,
                turns=graph.rope != "none" and turned[index],
                states=() if attends else _states(read, graph, space),
            )
        )
    if not latent:
        _check_window_sizes(read, sizes)
    return tuple(sizes)


def _head_sizes(read: MetadataReader, latent: Latent | None, heads: int) -> tuple[int, int]:
    """Numbers of a cached key and of a cached value."""
    if latent and latent.absorbed:
        return latent.rank + read.count("rope.dimension_count"), 0
    if latent:
        return latent.key_size, latent.value_size
    common = read.count("embedding_length") // heads
    sizes = read.count("attention.key_length", common), read.count("attention.value_length", common)
    for key, size in zip(("key", "value"), sizes, strict=True):
        if size < 1:
            read.refuse(f"attention.{key}_length", size, "the size of a head")
    return sizes


def _check_window_sizes(read: MetadataReader, layers: list[LayerSizes]) -> None:
    """Layers with a window may have heads of their own sizes; here they have those of the others."""
    for layer in layers:
        own = {"attention.key_length_swa": layer.key_size, "attention.value_length_swa": layer.value_size}
        for key, size in own.items():
            if layer.window and (found := read.count(key, size)) != size:
                read.refuse(key, found, f"{size}, as in layers without a window: others cannot be run")


def _state_space(read: MetadataReader) -> StateSpace:
    return StateSpace(
        reach=read.count("ssm.conv_kernel"),
        inner=read.count("ssm.inner_size"),
        states=read.count("ssm.state_size"),
        rank=read.count("ssm.time_step_rank"),
        groups=read.count("ssm.group_count", 0),
        normed=read.raw("ssm.dt_b_c_rms") is True,
    )


def _states(read: MetadataReader, graph: Graph, space: StateSpace | None) -> tuple[tuple[int, ...], ...]:
    """What a layer remembers between passes: inputs that a short convolution still needs, and a state for each number."""
    if space is None:
        return ((read.count("shortconv.l_cache") - 1, read.count("embedding_length")),)
    if graph.recurrent == "mamba":
        return (space.reach - 1, space.inner), (space.inner, 1, space.states)
    width = space.inner + 2 * space.groups * space.states
    return (space.reach - 1, width), (space.rank, space.inner // space.rank, space.states)


def _norm_epsilon(read: MetadataReader, graph: Graph) -> float:
    """The norm's own key, or the other's: some converters write what the configuration calls it."""
    keys = ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"]
    own, other = keys if graph.norm == "rms" else reversed(keys)
    key = other if read.has(other) and not read.has(own) else own
    epsilon = read.number(key)
    if epsilon < 0:
        read.refuse(key, epsilon, "no negative number")
    return epsilon


def _rope_size(read: MetadataReader, graph: Graph, layer: tuple[LayerSizes, ...], key_size: int) -> int:
    smallest = min((sizes.key_size for sizes in layer if sizes.kv_heads), default=key_size)
    smallest = min(smallest, key_size)
    size = read.count("rope.dimension_count", smallest)
    if graph.rope != "none" and (size % 2 or size > smallest):
        read.refuse("rope.dimension_count", size, f"an even number up to {smallest}")
    return size


def _base(read: MetadataReader, graph: Graph, base: float) -> float:
    if base <= 1 and graph.rope != "none":
        read.refuse("rope.freq_base", base, "more than 1")
    return base


def _rope_scaling(read: MetadataReader, graph: Graph) -> RopeScaling:
    factor = read.number("rope.scaling.factor" if read.has("rope.scaling.factor") else "rope.scale_linear", 0.0)
    kind = read.text("rope.scaling.type", "linear")
    if kind not in SCALINGS:
        found = f"rope scaling {shown(kind)} is not supported, only {', '.join(SCALINGS)}"
        raise UnsupportedError(f"architecture {read.architecture!r} cannot be run: {found}")
    betas = read.formula("yarn_fast", graph.yarn_fast), read.formula("yarn_slow", graph.yarn_slow)
    if factor < 0 or min(betas) <= 0:
        read.refuse("rope.scaling.factor", (factor, *betas), "positive numbers, as are those of YaRN's betas")
    factor = 1.0 if kind == "none" or factor == 0.0 else factor
    attention = read.number("rope.scaling.attn_factor", 1.0)
    read.scope["stretch"] = math.log(max(1.0, factor))
    growth = read.scope["yarn_growth"] = attention * read.formula("yarn_growth", graph.yarn_growth)
    return RopeScaling(
        kind=kind,
        factor=factor,
        original_context=read.count("rope.scaling.original_context_length", 0) or read.count("context_length"),
        attention=attention,
        beta_fast=betas[0],
        beta_slow=betas[1],
        growth=growth,
    )


def _temperature(read: MetadataReader, graph: Graph) -> Temperature | None:
    scale = read.formula("temperature_scale", graph.temperature_scale)
    if not scale:
        return None
    length = read.formula("temperature_length", graph.temperature_length)
    if length <= 0:
        raise ModelError(f"{read.file.path}: temperature_length is {length}, expected a positive number")
    return Temperature(scale, length, read.formula("temperature_offset", graph.temperature_offset))


def _parallel(read: MetadataReader, graph: Graph) -> bool:
    if graph.residual != "as_declared":
        return graph.residual == "parallel"
    value = read.raw("use_parallel_residual")
    if not isinstance(value, bool):
        read.refuse("use_parallel_residual", value, "a boolean")
    return bool(value)


GATINGS: Final = {1: "softmax", 2: "sigmoid", 3: "softmax_of_chosen", 4: "sqrt_softplus"}
"""The values of expert_gating_func."""


def _experts(read: MetadataReader, graph: Graph) -> Experts | None:
    count = read.count("expert_count", 0)
    if not count:
        return None
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
    return Experts(
        count=count,
        used=used,
        groups=groups,
        groups_used=groups_used,
        shared=bool(read.count("expert_shared_count", 0) or read.count("expert_shared_feed_forward_length", 0)),
        gating=_gating(read, graph) if graph.expert_gating == "as_declared" else graph.expert_gating,
        norm=bool(read.evaluate(graph.expert_norm)),
        scale=read.formula("expert_scale", graph.expert_scale) or 1.0,
    )


def _gating(read: MetadataReader, graph: Graph) -> str:
    declared = read.count("expert_gating_func", 0)
    if declared == 0:
        return graph.expert_gating_undeclared
    if declared not in GATINGS:
        read.refuse("expert_gating_func", declared, f"one of {', '.join(map(str, GATINGS))}")
    return GATINGS[declared]
