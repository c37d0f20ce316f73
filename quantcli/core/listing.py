"""Lists in an error's line: the first few, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence


def listed(items: Sequence[str], *, most: int = 8, separator: str = ", ") -> str:
    """`a, b and 3 more`: at most `most` items, joined by `separator`."""
    rest = len(items) - most
    return separator.join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
