"""A model's hyperparameters, from the metadata of its file and from its architecture's graph flags."""

from __future__ import annotations

from pathlib import Path

from quantcli.architectures.graph import Graph
from quantcli.architectures.loader import graph_of
from quantcli.core.errors import ModelError, UnsupportedError
from quantcli.runner.feed_forward.registry import FEED_FORWARD
from quantcli.runner.ignored import warn_of_ignored
from quantcli.runner.metadata import REQUIRED, MetadataReader, shown_value
from quantcli.runner.mixers.registry import MIXERS
from quantcli.runner.mixers.windows import read_causal
from quantcli.runner.model_file import ModelFile, metadata_value
from quantcli.runner.rotary import read_rope, read_rope_scaling
from quantcli.runner.sizes import Hyperparameters, MixerSizes
from quantcli.runner.step import Temperature


def read_hyperparameters(file: ModelFile, architecture_file: Path | None = None) -> tuple[Hyperparameters, Graph]:
    """The hyperparameters and the graph of a file. `architecture_file` replaces the package's own description of it.

    Raises:
        ModelError: for a key that is missing, has the wrong type, or contradicts another.
        UnsupportedError: for an architecture that cannot be run; the missing feature is named.
    """
    _check_is_model(file)
    name = metadata_value(file, "general.architecture")
    if not isinstance(name, str):
        raise ModelError(f"{file.path}: no general.architecture")
    read = MetadataReader(file, name)
    graph = graph_of(name, architecture_file).resolve(read.scope)
    if graph.missing:
        raise UnsupportedError(f"architecture {name!r} cannot be run: its graph needs {', '.join(graph.missing)}")
    layers, mtp_layers = _layer_counts(read)
    scaling = read_rope_scaling(read, graph)
    mixers = _mixers(read, graph, layers, layers + mtp_layers)
    sizes = Hyperparameters(
        architecture=name,
        layers=layers,
        mtp_layers=mtp_layers,
        context=read.count("context_length"),
        width=read.count("embedding_length"),
        norm_epsilon=_norm_epsilon(read, graph),
        causal=read_causal(read, graph),
        parallel=_parallel(read, graph),
        embedding_scale=read.formula("embedding_scale", graph.embedding_scale) or 1.0,
        residual_scale=read.formula("residual_scale", graph.residual_scale) or 1.0,
        logit_scale=read.formula("logit_scale", graph.logit_scale) or 1.0,
        logit_softcap=read.formula("logit_softcap", graph.logit_softcap),
        classifier_pooling="mean" if read.formula("classifier_pooling", graph.classifier_pooling) == 1 else "cls",
        rope=read_rope(read, graph, scaling, min((mixer.rotatable for mixer in mixers if mixer.rotatable), default=0)),
        temperature=_temperature(read, graph),
        mixers=mixers,
        feed_forward={kind: entry.read_sizes(read, graph) for kind, entry in FEED_FORWARD.items()},
    )
    warn_of_ignored(read)
    return sizes, graph


def _mixers(read: MetadataReader, graph: Graph, layers: int, count: int) -> tuple[MixerSizes, ...]:
    """The token mixers of the first `layers` of `count` layers. Layers with a head_count_kv of 0 are recurrent."""
    heads = read.counts("attention.head_count", count, 0 if graph.recurrent != "none" else REQUIRED)
    kv_heads = read.counts("attention.head_count_kv", count, list(heads))
    kinds = [graph.mixer if number else graph.recurrent for number in kv_heads[:layers]]
    if "none" in kinds:
        layer = kinds.index("none")
        raise ModelError(f"{read.file.path}: layer {layer} has no key-value heads, and the graph has no recurrent layers")
    mixers: dict[int, MixerSizes] = {}
    for kind in sorted(set(kinds)):
        if kind not in MIXERS:
            what = f"its graph has layers of the kind {kind!r}, expected one of {', '.join(MIXERS)}"
            raise UnsupportedError(f"architecture {read.architecture!r} cannot be run: {what}")
        chosen = [layer for layer in range(layers) if kinds[layer] == kind]
        mixers |= zip(chosen, MIXERS[kind](read, graph, count, chosen), strict=True)
    return tuple(mixers[layer] for layer in range(layers))


def _check_is_model(file: ModelFile) -> None:
    """Raises ModelError for other files with a general.architecture: LoRA adapters, vision towers, vocab-only files."""
    kind = metadata_value(file, "general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        raise ModelError(f"{file.path}: cannot be run by itself: general.type is {shown_value(kind)}, expected 'model'")
    if not file.tensors:
        raise ModelError(f"{file.path}: cannot be run: it has no tensors, like a vocabulary-only file")


def _layer_counts(read: MetadataReader) -> tuple[int, int]:
    """The numbers of layers that are run, and of multi-token prediction (MTP) layers after them, which are not."""
    layers = read.count("block_count")
    tensors = len(read.file.tensors)
    if layers > tensors:
        read.refuse("block_count", layers, f"no more layers than the file's {tensors} tensors")
    mtp_layers = read.count("nextn_predict_layers", 0)
    if mtp_layers >= layers:
        read.refuse("nextn_predict_layers", mtp_layers, f"fewer than the {layers} layers")
    return layers - mtp_layers, mtp_layers


def _norm_epsilon(read: MetadataReader, graph: Graph) -> float:
    """The epsilon of the model's norms. Some converters write it under the key of the other norm, so that is a fallback."""
    keys = ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"]
    own, other = keys if graph.norm == "rms" else reversed(keys)
    key = other if read.has(other) and not read.has(own) else own
    epsilon = read.number(key)
    if epsilon < 0:
        read.refuse(key, epsilon, "no negative number")
    return epsilon


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
