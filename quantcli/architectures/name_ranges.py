"""Abbreviates lists of tensor names: those that differ only in numbers become `model.layers.{0-31}.mlp.up.weight`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from quantcli.core.listing import listed

LISTED: Final = 100
"""The most names or patterns in an error message; of the rest it has only the number."""

_NUMBER: Final = re.compile(r"(?<![^.])(?:0|[1-9]\d{0,8})(?![^.])")
"""A number between dots in a tensor name."""


def listed_names(names: Iterable[str]) -> str:
    """All the names, abbreviated, in the order of first occurrence."""
    return listed(ranges(names), most=LISTED)


def ranges(names: Iterable[str]) -> list[str]:
    """Patterns that match exactly these names: `{0-3,7}` for a number with these values."""
    numbers_by_kind: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        kind = _NUMBER.sub("\0", name)
        numbers_by_kind.setdefault(kind, []).append(tuple(int(number) for number in _NUMBER.findall(name)))
    return [
        _filled(kind, pattern) for kind, numbers in numbers_by_kind.items() for pattern in _patterns(dict.fromkeys(numbers))
    ]


def _patterns(numbers: Iterable[tuple[int, ...]]) -> list[tuple[str, ...]]:
    """The tuples as a few products of ranges. First elements are grouped where they have the same remainders."""
    rests: dict[int, list[tuple[int, ...]]] = {}
    for places in filter(None, numbers):
        rests.setdefault(places[0], []).append(places[1:])
    if not rests:
        return [()]
    values: dict[frozenset[tuple[int, ...]], list[int]] = {}
    for first, rest in rests.items():
        values.setdefault(frozenset(rest), []).append(first)
    return [(_runs(firsts), *others) for firsts in values.values() for others in _patterns(rests[firsts[0]])]


def _runs(values: Iterable[int]) -> str:
    """`5` for one value, `{0-3,7}` for several."""
    ordered = sorted(values)
    if len(ordered) == 1:
        return str(ordered[0])
    runs: list[list[int]] = []
    for value in ordered:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return "{" + ",".join(f"{low}-{high}" if high > low else str(low) for low, high in runs) + "}"


def _filled(kind: str, parts: Sequence[str]) -> str:
    between = kind.split("\0")
    return between[0] + "".join(part + text for part, text in zip(parts, between[1:], strict=True))
