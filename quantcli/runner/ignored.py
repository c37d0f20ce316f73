"""Warnings for hyperparameters that have no effect, because the architecture does not use them.

llama.cpp reads a key only for the architectures that are known to have it. quantcli does the same, and warns, because the
file's author expected an effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from quantcli.architectures.expressions import Expression
from quantcli.core.errors import ModelError, warn
from quantcli.runner.metadata import MetadataReader, shown_value

_SCALES: Final = "not value in [0, 1]"
_YARN: Final = "rope_scaling_type == 'yarn'"

_CHANGES: Final[Mapping[str, Expression]] = MappingProxyType(
    {
        key: Expression(source)
        for key, source in {
            "attention.clamp_kqv": "value > 0",
            "attention.max_alibi_bias": "value > 0",
            "attention.scale": "value != 0 and not 0.9999 < value / score_scale < 1.0001",
            "attention.sliding_window": "0 < value and value < context_length",
            "attention.temperature_scale": "value != 0",
            "attention.output_scale": _SCALES,
            "attention.value_scale": _SCALES,
            "attn_logit_softcapping": "value > 0",
            "final_logit_softcapping": "value > 0",
            "router_logit_softcapping": "value > 0",
            "embedding_scale": _SCALES,
            "residual_scale": _SCALES,
            "logit_scale": _SCALES,
            "expert_weights_scale": f"expert_count and {_SCALES}",
            "expert_weights_norm": "expert_count and value != expert_norm",
            "expert_gating_func": "expert_count and not value in [0, expert_gating]",
            "rope.freq_base_swa": "windows and value != first(rope_freq_base, 10000)",
            "rope.scaling.alpha": "value > 0",
            "rope.scaling.yarn_beta_fast": f"{_YARN} and value != 32",
            "rope.scaling.yarn_beta_slow": f"{_YARN} and value != 1",
            "rope.scaling.yarn_ext_factor": f"{_YARN} and value >= 0 and value != 1",
            "rope.scaling.yarn_attn_factor": f"{_YARN} and not 0.9999 < value / yarn_growth < 1.0001",
            "rope.scaling.yarn_log_multiplier": f"{_YARN} and value != 0",
        }.items()
    }
)
"""Optional keys, each with an expression for whether its `value` would change the output.

Besides an architecture's keys, expressions may use the variables of `_COMPUTED`."""

_COMPUTED: Final[Mapping[str, Any]] = MappingProxyType(
    {"score_scale": 1.0, "yarn_growth": 1.0, "windows": False, "expert_norm": False, "expert_gating": 0}
)
"""Variables computed while hyperparameters were read, with their defaults for models that do not compute them."""


def warn_of_ignored(read: MetadataReader) -> None:
    """Issue a `QuantcliWarning` for each key that was not read and would change the output in other architectures.

    To be called after all hyperparameters have been read.
    """
    for key, changes in _CHANGES.items():
        if not read.has(key) or read.was_read(key):
            continue
        value = read.raw(key)
        if _holds(changes, {**_COMPUTED, **read.scope, "value": value}):
            said = f"{value:.6g}" if isinstance(value, float) else shown_value(value)
            what = f"{read.architecture}.{key} is {said}, and has no effect"
            warn(f"{read.file.path}: {what}: llama.cpp does not read it for this architecture")


def _holds(test: Expression, scope: Mapping[str, Any]) -> bool:
    """Whether a test is true, or cannot be evaluated for this value."""
    try:
        return bool(test.evaluate(scope, "the metadata"))
    except (ModelError, ValueError):
        return True
