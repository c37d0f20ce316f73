"""LoRA adapters as peft saves them: adapter_config.json, and pairs of matrices for some of a model's weights.

Source: `save_and_load.py` and `tuners/lora` of peft 0.21.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from quantcli.core.errors import FormatError, ModelError, UnsupportedError
from quantcli.core.listing import listed
from quantcli.formats.adapters.low_rank import Adapter, LowRank, number
from quantcli.formats.adapters.patterns import chosen
from quantcli.tensors.tensor import Tensor

CONFIG: Final = "adapter_config.json"

WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
"""The names of the weight file, in the order they are tried."""

_FLOATS: Final = ("F64", "F32", "F16", "BF16")

_PART: Final = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"lora_(?P<matrix>[AB])(?:\.(?!weight$|bias$)\w+)?\.(?P<kind>weight|bias)"
    r"|lora_embedding_(?P<embedding>[AB])(?:\.\w+)?"
    r"|lora_(?P<magnitude>magnitude_vector)(?:\.\w+)*"
    r")"
)
"""The names of the tensors of a pair, with or without the name of the adapter, such as `default`."""

_WRAPPED: Final = re.compile(r"\.(?:modules_to_save(?:\.\w+)?|base_layer|original_module)\.(?=weight$|bias$)")
"""The components that peft inserts into the names of weights that it saves whole."""

_FROZEN: Final = re.compile(r".+\.(?:base_layer\.weight|original_module\.(?:weight|bias))")
"""The names of copies of the base model's weights, of embeddings that are adapted or fully trained."""

_UNSUPPORTED: Final[Mapping[str, str]] = {
    "target_parameters": "LoRA on parameters outside of layers (target_parameters)",
    "trainable_token_indices": "trained rows of an embedding (trainable_token_indices)",
    "layer_replication": "repeated layers (layer_replication)",
    "use_qalora": "QALoRA (use_qalora)",
    "use_bdlora": "BD-LoRA (use_bdlora)",
    "arrow_config": "Arrow routing (arrow_config)",
    "kasa_config": "KaSA (kasa_config)",
    "monteclora_config": "MonteCLoRA (monteclora_config)",
}
"""Settings of unsupported features -> their names in errors."""

_CHANGING_STARTS: Final = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Prefixes of `init_lora_weights` for initializations that change the weights of the base model."""

_PLAIN: Final = "Let peft merge it (`merge_and_unload`) and convert the merged model."


def assemble(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """The adapter of a directory, from its configuration and its tensors.

    Raises:
        FormatError: if the configuration has no alpha.
        UnsupportedError: if the adapter is not LoRA, or LoRA with a feature that is not supported.
        ModelError: if its tensors are inconsistent. The message lists all problems.
    """
    _refuse_unsupported(directory, config)
    alpha = number(config.get("lora_alpha"))
    if alpha is None:
        raise FormatError(directory / CONFIG, f"lora_alpha is {config.get('lora_alpha')!r}, expected a number")
    return _assemble(directory, config, tensors, alpha)


def _refuse_unsupported(directory: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise UnsupportedError(f"{directory}: an adapter of the kind {kind}, expected LORA", hint=_PLAIN)
    unsupported = [name for key, name in _UNSUPPORTED.items() if config.get(key)]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGING_STARTS):
        unsupported.append(f"a base model that was changed before the training (init_lora_weights = {start!r})")
    if unsupported:
        what = f"{directory}: the adapter has {', '.join(unsupported)}, which is not supported"
        raise UnsupportedError(what, hint=_PLAIN)


# --- from tensors to pairs ------------------------------------------------------------------------------------------------


def _assemble(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], alpha: float) -> Adapter:
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    frozen: dict[str, Tensor] = {}
    for given, tensor in tensors.items():
        name = given.replace("base_model.model.", "")
        match = _PART.fullmatch(name)
        if match:
            kind = "bias" if match["kind"] == "bias" else match["matrix"] or match["magnitude"]
            parts.setdefault(match["module"], {})[kind or f"embedding {match['embedding']}"] = tensor
        elif _FROZEN.fullmatch(name):
            frozen[_WRAPPED.sub(".", name)] = tensor
        else:
            whole[_WRAPPED.sub(".", name)] = tensor
    pairs, problems = {}, []
    scalings = _scalings(directory, config, list(parts))
    for module, held in parts.items():
        pair = _pair(module, held, config, scalings)
        if isinstance(pair, LowRank):
            pairs[pair.name] = pair
        else:
            problems.append(f"{module}: {pair}")
    if not pairs and not problems:
        problems.append("no LoRA matrices in it")
    if problems:
        raise ModelError(f"{directory}: a faulty adapter: {listed(problems, separator='; ')}")
    return Adapter(directory, config, pairs, whole, frozen, alpha)


def _pair(module: str, held: Mapping[str, Tensor], config: Mapping[str, Any], scalings: _Scalings) -> LowRank | str:
    """The pair of a layer, or the problem with it."""
    embedding = "embedding A" in held or "embedding B" in held
    names = ("embedding A", "embedding B") if embedding else ("A", "B")
    absent = [f"lora_{name.replace(' ', '_')}" for name in names if name not in held]
    if absent:
        return f"no {' and no '.join(absent)}"
    a, b = (held[name] for name in names)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.size or not b.size:
        return f"matrices {list(a.shape)} and {list(b.shape)}, expected [rank, in] and [out, rank]"
    if any(half.type.name not in _FLOATS for half in (a, b)):
        return f"matrices stored as {a.type.name} and {b.type.name}, which cannot be computed with"
    rank = _setting(scalings.ranks, module, config.get("r", a.shape[0]))
    alpha = _setting(scalings.alphas, module, config["lora_alpha"])
    if rank is None or rank != a.shape[0] or alpha is None:
        return f"matrices of rank {a.shape[0]}, where {CONFIG} says rank {rank} and alpha {alpha}"
    root = math.sqrt(rank) if config.get("use_rslora") else rank
    pair = LowRank(
        f"{module}.weight", (b.shape[0], a.shape[1]), a.type, a, b, alpha / root,
        embedding=embedding, magnitude=held.get("magnitude_vector"), bias=held.get("bias"),
    )  # fmt: skip
    if config.get("use_dora") and pair.magnitude is None:
        return "no lora_magnitude_vector, though use_dora is set"
    transposed = embedding or bool(config.get("fan_in_fan_out"))
    return replace(pair, shape=pair.shape[::-1], transposed=True) if transposed else pair


class _Scalings(NamedTuple):
    """What the configuration says of single layers; None for what is no table of expressions."""

    ranks: Mapping[str, Any] | None
    alphas: Mapping[str, Any] | None


def _scalings(directory: Path, config: Mapping[str, Any], modules: Sequence[str]) -> _Scalings:
    def settings(key: str) -> Mapping[str, Any] | None:
        patterns = config.get(key) or {}
        return chosen(f"{directory / CONFIG}: {key}", patterns, modules) if isinstance(patterns, dict) else None

    return _Scalings(settings("rank_pattern"), settings("alpha_pattern"))


def _setting(settings: Mapping[str, Any] | None, module: str, usual: Any) -> float | None:
    """A setting for one layer; None if it is not a number."""
    return None if settings is None else number(settings.get(module, usual))
