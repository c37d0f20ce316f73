"""Lists in error messages: the first few items, and the number of the others."""

from __future__ import annotations

from collections.abc import Sequence


def listed(items: Sequence[str], *, most: int = 8, separator: str = ", ") -> str:
    """`a, b and 3 more`: at most `most` items, joined by `separator`."""
    rest = len(items) - most
    return separator.join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
