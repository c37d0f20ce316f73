"""A model's sizes and constants, from the metadata of its GGUF file, and its forward pass, from its architecture's flags.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final

from quantcli.architectures.loader import graph_of
from quantcli.formats.errors import ModelError, UnsupportedError
from quantcli.formats.gguf_reader import GGUFFile

_REQUIRED: Final = object()


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles are stretched beyond the length a model was first trained on. `kind` is none, linear or yarn."""

    kind: str
    factor: float
    original_context: int
    extrapolation: float
    attention: float
    beta_fast: float
    beta_slow: float
    log_multiplier: float


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes in numbers of float32, by the names of the GGUF specification."""

    architecture: str
    layers: int
    context: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    norm_epsilon: float
    rope_size: int
    rope_base: float
    rope_scaling: RopeScaling
    attention_scale: float


@dataclass(frozen=True)
class Graph:
    """The flags of a forward pass, with the values the runner knows. An architecture file's `[graph]` sets them."""

    norm: str
    residual: str
    mlp: str
    activation: str
    positions: str
    rope_pairs: str


KNOWN_FLAGS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "norm": ("rms",),
        "residual": ("sequential",),
        "mlp": ("gated",),
        "activation": ("silu",),
        "positions": ("rope",),
        "rope_pairs": ("adjacent", "halves"),
    }
)
"""Every flag, and the values that `Model.forward` computes."""


def read_graph(architecture: str) -> Graph:
    """The forward pass of a value of `general.architecture`.

    Raises:
        UnsupportedError: if no architecture has this name, or a flag asks for what the runner does not compute.
    """
    flags = dict(graph_of(architecture))
    for flag, value in flags.items():
        if value not in KNOWN_FLAGS.get(flag, ()):
            raise UnsupportedError(f"architecture {architecture!r} cannot be run: its graph needs {flag} = {value!r}")
    missing = [field.name for field in fields(Graph) if field.name not in flags]
    if missing:
        raise UnsupportedError(f"architecture {architecture!r} cannot be run: its graph does not say {', '.join(missing)}")
    return Graph(**flags)


def read_hyperparameters(file: GGUFFile) -> Hyperparameters:
    """Raises ModelError for a key that is missing, not a number of its kind, or contradicts another."""
    name = file.architecture
    if name is None:
        raise ModelError(f"{file.path}: no general.architecture, so nothing says how to run it")
    read = _Reader(file, name)
    if read.count("expert_count", 0):
        raise UnsupportedError(f"architecture {name!r} with experts cannot be run: mixtures of experts are not supported")
    width, heads = read.count("embedding_length"), read.count("attention.head_count")
    kv_heads = read.count("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise ModelError(f"{file.path}: {heads} attention heads cannot share {kv_heads} key-value heads")
    head_size = read.count("attention.key_length", width // heads)
    if read.count("attention.value_length", head_size) != head_size:
        raise UnsupportedError(f"architecture {name!r} with keys and values of different sizes cannot be run")
    rope_size = read.count("rope.dimension_count", head_size)
    if rope_size % 2 or rope_size > head_size:
        expected = f"expected an even number up to {head_size}"
        raise ModelError(f"{file.path}: {name}.rope.dimension_count is {rope_size}, {expected}")
    return Hyperparameters(
        architecture=name,
        layers=read.count("block_count"),
        context=read.count("context_length"),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        norm_epsilon=read.number("attention.layer_norm_rms_epsilon"),
        rope_size=rope_size,
        rope_base=read.number("rope.freq_base", 10000.0),
        rope_scaling=_rope_scaling(read),
        attention_scale=read.number("attention.scale", 0.0) or 1 / math.sqrt(head_size),
    )


def _rope_scaling(read: _Reader) -> RopeScaling:
    factor = read.number("rope.scaling.factor", read.number("rope.scale_linear", 0.0))
    kind = read.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(f"architecture {read.architecture!r} cannot be run: rope scaling {kind!r} is not supported")
    return RopeScaling(
        kind=kind,
        factor=1.0 if kind == "none" or factor == 0.0 else factor,
        original_context=read.count("rope.scaling.original_context_length", read.count("context_length")),
        extrapolation=read.number("rope.scaling.yarn_ext_factor", 1.0 if kind == "yarn" else 0.0),
        attention=read.number("rope.scaling.attn_factor", read.number("rope.scaling.yarn_attn_factor", 1.0)),
        beta_fast=read.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=read.number("rope.scaling.yarn_beta_slow", 1.0),
        log_multiplier=read.number("rope.scaling.yarn_log_multiplier", 0.0),
    )


@dataclass(frozen=True)
class _Reader:
    """Metadata values under the architecture's prefix, checked."""

    file: GGUFFile
    architecture: str

    def count(self, key: str, default: Any = _REQUIRED) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < (default is _REQUIRED):
            self._refuse(key, value, "a count")
        return int(value)

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._refuse(key, value, "a finite number")
        return float(value)

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            self._refuse(key, value, "a text")
        return str(value)

    def _value(self, key: str, default: Any) -> Any:
        value = self.file.get(f"{self.architecture}.{key}", default)
        if value is _REQUIRED:
            raise ModelError(f"{self.file.path}: the metadata lack {self.architecture}.{key}")
        return value

    def _refuse(self, key: str, value: Any, expected: str) -> None:
        shown = f"an array of {len(value)}" if hasattr(value, "__len__") and not isinstance(value, str) else repr(value)
        raise ModelError(f"{self.file.path}: {self.architecture}.{key} is {shown}, expected {expected}")
