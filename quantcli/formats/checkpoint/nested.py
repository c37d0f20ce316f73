"""Finds the language model's own configuration inside the `config.json` of a model that also sees, hears or speaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

PLACES: Final = (
    ("text_config",),
    ("llm_config",),
    ("lm_config",),
    ("thinker_config", "text_config"),
    ("language_config",),
    ("lfm",),
)
"""Where it may be: keys from the outermost table on. The last place that is there is used, as in the reference."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's own configuration; empty where the configuration is that of a language model alone."""
    return _inside(config, _place(config))


def with_text_changes(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with changes at its top level, and in the language model's own configuration if there is one."""
    return {**_changed(config, _place(config), changes), **changes}


def _place(config: Mapping[str, Any]) -> tuple[str, ...]:
    return next((place for place in reversed(PLACES) if _inside(config, place)), ())


def _inside(config: Mapping[str, Any], place: tuple[str, ...]) -> Mapping[str, Any]:
    """The table at a place; empty where there is none, or at no place."""
    found: Any = config if place else None
    for key in place:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _changed(config: Mapping[str, Any], place: tuple[str, ...], changes: Mapping[str, Any]) -> dict[str, Any]:
    if not place:
        return dict(config)
    key, *deeper = place
    inner = _changed(config[key], tuple(deeper), changes)
    return {**config, key: inner if deeper else {**inner, **changes}}
