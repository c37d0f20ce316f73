"""Expressions of an adapter's configuration that choose layers by the end of their names, as in peft."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from quantcli.core import isolated

INVALID: Final = object()
"""The setting of a layer for which an expression is none of Python's."""

_SECONDS: Final = 5
"""The limit on their CPU time. Real ones take milliseconds."""


def chosen(what: str, settings: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """Module -> the setting of the first expression that matches the end of its name, or `INVALID`. Others are left out.

    The expressions may backtrack without end, so they run in another process.

    Raises:
        UnsupportedError: if they take too long. `what` names the file and the setting.
    """
    if not settings:
        return {}
    patterns = list(settings)
    values = [*settings.values(), INVALID]
    first = isolated.call(_first_matches, patterns, list(modules), what=f"{what}: its expressions", seconds=_SECONDS)
    return {module: values[index] for module, index in first.items()}


def _first_matches(patterns: Sequence[str], modules: Sequence[str]) -> dict[str, int]:
    """Module -> the index of the first pattern that matches it; `len(patterns)` if an invalid one comes before."""
    found: dict[str, int] = {}
    for index, pattern in enumerate(patterns):
        rest = [module for module in modules if module not in found]
        try:
            expression = re.compile(rf"(.*\.)?({pattern})$")
            found |= dict.fromkeys(filter(expression.match, rest), index)
        except (re.error, RecursionError, OverflowError):
            found |= dict.fromkeys(rest, len(patterns))
    return found
