"""From `config.json` to hyperparameters, as transformers' configuration classes do it.

A `config.json` may omit values that are defaults of its configuration class. The reference converter reads it through
`transformers`. Its output depends on that library's defaults, and on how it merges old and new keys of RoPE parameters into
one table. The defaults are data: `defaults/MODEL_TYPE.toml`, made from the configuration class, and
`[defaults.MODEL_TYPE]` of an architecture file. The merging is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from quantcli.architectures.expressions import Expression
from quantcli.architectures.tables import enclosing_types
from quantcli.core.errors import ModelError, shown
from quantcli.formats.checkpoint.nested import text_config

ROPE_TYPES_WITH_ORIGINAL_CONTEXT: Final = ("llama3", "yarn", "longrope")
"""RoPE scaling types whose original context length defaults to the model's context length, unless the configuration class
has a parameter for it (`modeling_rope_utils.py` of transformers 5)."""

# Keys of RoPE parameters outside the rope table, in the order the reference converter looks for them.
_THETA: Final = ("global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base")
_LOCAL_THETA: Final = (
    "local_rope_theta",
    "rope_local_theta",
    "rope_theta_local",
    "swa_rope_theta",
    "rope_local_base_freq",
)
_PARTIAL: Final = ("partial_rotary_factor", "rope_pct", "rope_percent")
_ORIGINAL_CONTEXT: Final = ("original_max_position_embeddings",)


@dataclass(frozen=True)
class OrNull:
    """The default of a key that may also be null, and the value that replaces null; None: it stays null."""

    value: Any
    null: Expression | None = None


def complete_config(config: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The configuration with the defaults of its `model_type`, and with its RoPE parameters under `rope`.

    A configuration class rejects a file with a null for a key that may not be null, and transformers has no class for some
    models with a language model inside. The reference converter then uses the file as it is, without defaults, and so do
    we.

    Args:
        config: the parsed `config.json`.
        defaults: the defaults of each known `model_type`. Constants are for absent keys. Such a key may be null only if its
            default is an `OrNull`, or if it is a RoPE parameter. Expressions are for keys that are absent or null.

    Raises:
        ModelError: if the RoPE parameters are not a table.
    """
    inner = text_config(config)
    flat = {**config, **inner}
    classless = bool(inner) and str(config.get("model_type")) not in enclosing_types()
    known = None if classless else defaults.get(str(flat.get("model_type")))
    if known is not None and any(key in flat and flat[key] is None for key in known if _is_never_null(key, known[key])):
        known = None
    completed = dict(flat)
    for key, value in (known or {}).items():
        if not isinstance(value, Expression):
            completed.setdefault(key, value.value if isinstance(value, OrNull) else value)
    for key, value in (known or {}).items():
        derived = value.null if isinstance(value, OrNull) else value
        if isinstance(derived, Expression) and completed.get(key) is None:
            completed[key] = derived.evaluate(completed)
    return {**completed, "rope": _rope_parameters(completed, known)}


def _is_never_null(key: str, default: Any) -> bool:
    return not isinstance(default, Expression | OrNull) and key not in (*_THETA, *_LOCAL_THETA, *_PARTIAL)


def hyperparameters(config: Mapping[str, Any], values: Mapping[str, Expression]) -> dict[str, Any]:
    """The variables of an architecture's expressions: the keys of a completed configuration, overridden by `values`.

    Values are computed in order, each from the configuration and the values above it. In the definition of `head_dim`, the
    name `head_dim` is therefore that of the configuration.

    Raises:
        ModelError: if a value cannot be computed from the configuration.
    """
    scope = dict(config)
    for name, expression in values.items():
        scope[name] = expression.evaluate(scope)
    return scope


def _find(config: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _rope_parameters(config: Mapping[str, Any], known: Mapping[str, Any] | None) -> dict[str, Any]:
    """One table of RoPE parameters. Tables per attention type, where the model has them, stay nested in it.

    `known` are the defaults of the configuration class, if there is one. Such a class completes the table in its own way.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise ModelError(f"config.json: the rope parameters are {shown(given)}, expected a table")
    rope = dict(given)
    nested = [key for key in ("full_attention", "sliding_attention") if isinstance(rope.get(key), Mapping)]
    if nested:
        return rope
    if (local := _find(config, _LOCAL_THETA)) is not None:
        rope["sliding_attention"] = {"rope_theta": local}
    if known is not None:
        rope.setdefault("rope_type", rope.get("type") or "default")
    derived = {
        "rope_theta": _find(config, _THETA),
        "rope_type": rope.get("type"),
        "partial_rotary_factor": _find(config, _PARTIAL),
        "original_max_position_embeddings": _find(config, _ORIGINAL_CONTEXT),
    }
    if known is not None and rope["rope_type"] in ROPE_TYPES_WITH_ORIGINAL_CONTEXT and not known.keys() & _ORIGINAL_CONTEXT:
        derived["original_max_position_embeddings"] = config.get("max_position_embeddings")
    return {**{key: value for key, value in derived.items() if value is not None}, **rope}
